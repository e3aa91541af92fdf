-- ARGV: rank of the last id to read from each set; the sets, each after the command that reads it in its
-- order, as in 'ZRANGE:ready ZREVRANGE:done'
--
-- One script reads all sets, so that it misses no job that moves from one set to another.
local ids = {}
for command, set in string.gmatch(ARGV[2], '(%u+):(%l+)') do
  for _, id in ipairs(redis.call(command, key(set), 0, ARGV[1])) do
    ids[#ids + 1] = id
  end
end
return ids
