-- ARGV: id, server, region, spec, priority, level part of the score, wait in ms
local id, server, region = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', job_key(id)) == 1 then
  return { 'added', id }
end
local open = redis.call('HGET', key('unique'), region .. ':' .. server)
if open then
  return { 'open', open }
end
redis.call('HSETNX', key('meta'), 'schema', SCHEMA)
local score = tonumber(ARGV[6]) + now
redis.call('HSET', job_key(id), 'server', server, 'region', region, 'spec', ARGV[4], 'priority', ARGV[5],
  'score', string.format('%.0f', score), 'added', now, 'deliveries', 0, 'attempts', 0, 'takeovers', 0)
redis.call('HSET', key('unique'), region .. ':' .. server, id)
if tonumber(ARGV[7]) > 0 then
  make_delayed(id, now + tonumber(ARGV[7]))
else
  make_ready(id)
end
note(id, 'added', server .. ' into ' .. region)
return { 'added', id }
