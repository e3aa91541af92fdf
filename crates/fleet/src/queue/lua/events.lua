-- ARGV: the most events, the longest text that is given whole
local events = redis.call('XREVRANGE', key('events'), '+', '-', 'COUNT', ARGV[1])
for _, event in ipairs(events) do
  cut(event[2], tonumber(ARGV[2]))
end
return events
