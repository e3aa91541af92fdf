-- ARGV: id
local id = ARGV[1]
local state = field(id, 'state')
if not state then
  return false
end
if state == 'ready' or state == 'delayed' then
  redis.call('ZREM', key(state), id)
  close(id, 'cancelled')
  note(id, 'cancelled')
elseif state == 'running' then
  change(id, 'cancel', 1)
end
return field(id, 'state')
