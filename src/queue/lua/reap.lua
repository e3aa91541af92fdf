-- ARGV: lease in ms, takeovers at most
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])
promote_due()
-- Whoever holds a lease could not beat while the server was down, or while another one took its place.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
local before = redis.call('HGET', key('meta'), 'run_id')
if before ~= run then
  redis.call('HSET', key('meta'), 'run_id', run)
  -- Where nobody has reaped before, nobody knows whether this is the server that gave the leases.
  local held = redis.call('ZRANGE', key('leases'), 0, -1)
  if #held > 0 then
    for _, id in ipairs(held) do
      redis.call('ZADD', key('leases'), now + lease, id)
    end
    return { tostring(#held), {}, {} }
  end
end
local back, dead = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now)) do
  unlease(id)
  local takeovers = number(id, 'takeovers') + 1
  change(id, 'takeovers', takeovers)
  if drop_cancelled(id) then
    -- Nothing was made.
  elseif takeovers >= most then
    change(id, 'error', 'its worker was lost ' .. takeovers .. ' times before it got a step further')
    close(id, 'dead')
    note(id, 'dead', 'poison')
    dead[#dead + 1] = id
  else
    make_ready(id)
    note(id, 'taken-back', field(id, 'worker'))
    back[#back + 1] = id
  end
end
return { '0', back, dead }
