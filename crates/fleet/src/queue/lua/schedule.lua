-- ARGV: name; plan, or '' to remove the schedule; 'now' or 'before', the time from which the plan applies
local name, plan = ARGV[1], ARGV[2]
if plan == '' then
  redis.call('HDEL', key('ticks'), name)
  return redis.call('HDEL', key('schedules'), name)
end
redis.call('HSETNX', key('meta'), 'schema', SCHEMA)
redis.call(ARGV[3] == 'before' and 'HSETNX' or 'HSET', key('ticks'), name, now)
redis.call('HSET', key('schedules'), name, plan)
return 1
