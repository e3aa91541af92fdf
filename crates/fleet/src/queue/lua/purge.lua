-- ARGV: time in ms since which a job has been over
--
-- Removes at most a thousand jobs of each state. The caller repeats the call until it returns 0.
local since = string.format('%.0f', now - tonumber(ARGV[1]))
local purged = 0
for _, state in ipairs({ 'done', 'dead', 'cancelled' }) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(state), '-inf', '(' .. since, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', key(state), id)
    redis.call('DEL', job_key(id))
    purged = purged + 1
  end
end
local workers = redis.call('HGETALL', key('workers'))
for i = 1, #workers, 2 do
  if tonumber(workers[i + 1]) < tonumber(since) then
    redis.call('HDEL', key('workers'), workers[i])
  end
end
return purged
