-- ARGV: id, token, lease in ms, step, journal
local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return 'lost'
end
redis.call('ZADD', key('leases'), now + tonumber(ARGV[3]), id)
if field(id, 'step') ~= ARGV[4] then
  note(id, 'step', ARGV[4])
end
change(id, 'step', ARGV[4], 'journal', ARGV[5], 'takeovers', 0)
return field(id, 'cancel') and 'cancelled' or 'on'
