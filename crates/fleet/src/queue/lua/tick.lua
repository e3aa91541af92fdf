-- ARGV: name, the tick in milliseconds
local name, tick = ARGV[1], tonumber(ARGV[2])
local last = redis.call('HGET', key('ticks'), name)
if not last or tonumber(last) >= tick then
  return 0
end
redis.call('HSET', key('ticks'), name, ARGV[2])
return 1
