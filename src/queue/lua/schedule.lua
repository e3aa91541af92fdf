-- ARGV: name, what it adds and when; empty where it is to be no more
local name, plan = ARGV[1], ARGV[2]
if plan == '' then
  redis.call('HDEL', key('ticks'), name)
  return redis.call('HDEL', key('schedules'), name)
end
redis.call('HSETNX', key('meta'), 'schema', SCHEMA)
-- What lies before now is not made up for.
redis.call('HSET', key('ticks'), name, now)
redis.call('HSET', key('schedules'), name, plan)
return 1
