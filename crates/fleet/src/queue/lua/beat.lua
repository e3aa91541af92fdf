-- ARGV: id, token, lease in ms, progress
local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return 'lost'
end
extend(id, tonumber(ARGV[3]))
redis.call('HSET', key('workers'), field(id, 'worker'), now)
change(id, 'progress', ARGV[4])
return field(id, 'cancel') and 'cancelled' or 'on'
