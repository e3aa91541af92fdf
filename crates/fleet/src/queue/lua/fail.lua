-- ARGV: id, token, error, wait in ms
local id, token, wait = ARGV[1], ARGV[2], tonumber(ARGV[4])
-- The response to an earlier call may have been lost.
if field(id, 'failed_by') == token then
  return 'on'
end
if not holds(id, token) then
  return 'lost'
end
unlease(id)
change(id, 'failed_by', token, 'error', ARGV[3], 'attempts', number(id, 'attempts') + 1)
if not drop_cancelled(id) then
  make_delayed(id, now + wait)
  note(id, 'failed', ARGV[3])
end
return 'on'
