-- ARGV: id, token, wait in ms; 0 gives it back at once
local id, wait = ARGV[1], tonumber(ARGV[3])
if not holds(id, ARGV[2]) then
  return 'lost'
end
unlease(id)
if drop_cancelled(id) then
  return 'on'
end
if wait > 0 then
  make_delayed(id, now + wait)
  note(id, 'parked', tostring(wait))
else
  make_ready(id)
  note(id, 'released')
end
return 'on'
