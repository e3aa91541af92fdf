-- ARGV: name, what it adds and when, empty where it is to be no more; since when it counts: now, or before
local name, plan = ARGV[1], ARGV[2]
if plan == '' then
  redis.call('HDEL', key('ticks'), name)
  return redis.call('HDEL', key('schedules'), name)
end
redis.call('HSETNX', key('meta'), 'schema', SCHEMA)
redis.call(ARGV[3] == 'before' and 'HSETNX' or 'HSET', key('ticks'), name, now)
redis.call('HSET', key('schedules'), name, plan)
return 1
