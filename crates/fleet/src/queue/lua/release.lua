-- ARGV: id, token
local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return 'lost'
end
unlease(id)
if not drop_cancelled(id) then
  make_ready(id)
  note(id, 'released')
end
return 'on'
