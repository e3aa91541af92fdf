-- ARGV: milliseconds that a job has been over for
local purged = 0
for _, state in ipairs({ 'done', 'dead', 'cancelled' }) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(state), '-inf', '(' .. string.format('%.0f', now - tonumber(ARGV[1])), 'LIMIT', 0, 1000)) do
    redis.call('ZREM', key(state), id)
    redis.call('DEL', job_key(id))
    purged = purged + 1
  end
end
return purged
