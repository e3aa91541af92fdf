-- ARGV: server, region
local forgotten = redis.call('HDEL', key('good'), ARGV[2] .. ':' .. ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', key('dead'), 0, -1)) do
  if field(id, 'server') == ARGV[1] and field(id, 'region') == ARGV[2] then
    redis.call('ZREM', key('dead'), id)
    redis.call('DEL', job_key(id))
    forgotten = forgotten + 1
  end
end
return forgotten > 0 and 1 or 0
