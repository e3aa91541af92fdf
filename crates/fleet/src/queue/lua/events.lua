-- ARGV: maximum number of events, maximum length of a text
local events = redis.call('XREVRANGE', key('events'), '+', '-', 'COUNT', ARGV[1])
for _, event in ipairs(events) do
  cut(event[2], tonumber(ARGV[2]))
end
return events
