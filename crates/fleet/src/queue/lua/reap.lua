-- ARGV: lease in ms; takeovers at most; 'new' if the caller has not yet called this over its connection;
-- 'ask' or 'refused' for INFO
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])
promote_due()
-- A worker could not send heartbeats while the server was down, or while another server replaced it.
local restarted = ARGV[3] == 'new'
local info = ARGV[4] == 'ask' and redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
if run then
  -- Without a stored run id, this may be another server than the one that gave the leases.
  restarted = redis.call('HGET', key('meta'), 'run_id') ~= run
  if restarted then
    redis.call('HSET', key('meta'), 'run_id', run)
  end
end
local spared = 0
if restarted then
  for _, id in ipairs(redis.call('ZRANGE', key('leases'), 0, -1)) do
    -- A lease is extended here once, and again only after its worker has extended it. A lost worker gets no
    -- second extension.
    if not field(id, 'spared') then
      redis.call('ZADD', key('leases'), now + lease, id)
      redis.call('HSET', job_key(id), 'spared', 1)
      spared = spared + 1
    end
  end
end
local back, dead = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now)) do
  unlease(id)
  local takeovers = number(id, 'takeovers') + 1
  change(id, 'takeovers', takeovers)
  if drop_cancelled(id) then
    -- The job left nothing to clean up.
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
return { tostring(spared), back, dead, run and 'told' or 'refused' }
