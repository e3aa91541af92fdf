-- For how many ms the job has been ready that has been so the longest; none where none is.
local least
for _, id in ipairs(redis.call('ZRANGE', key('ready'), 0, -1)) do
  local since = number(id, 'changed')
  least = math.min(least or since, since)
end
return least and now - least
