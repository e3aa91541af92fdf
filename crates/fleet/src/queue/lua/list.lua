-- ARGV: the last one's rank in each set; the sets, each after the command that reads it in its order, as in 'ZRANGE:ready ZREVRANGE:done'
-- All at one moment, so that no job is missed on its way from one to another.
local ids = {}
for command, set in string.gmatch(ARGV[2], '(%u+):(%l+)') do
  for _, id in ipairs(redis.call(command, key(set), 0, ARGV[1])) do
    ids[#ids + 1] = id
  end
end
return ids
