-- ARGV: id
local id = ARGV[1]
local state = field(id, 'state')
if not state then
  return false
end
if state == 'ready' or state == 'delayed' then
  redis.call('ZREM', key(state), id)
  change(id, 'cancel', 1)
  if not drop_cancelled(id) then
    make_ready(id)
  end
elseif state == 'running' then
  change(id, 'cancel', 1)
end
return field(id, 'state')
