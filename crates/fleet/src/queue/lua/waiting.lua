-- Returns the time in ms for which the longest-waiting ready job has been ready; nil if no job is ready.
local least
for _, id in ipairs(redis.call('ZRANGE', key('ready'), 0, -1)) do
  local since = number(id, 'changed')
  least = math.min(least or since, since)
end
return least and now - least
