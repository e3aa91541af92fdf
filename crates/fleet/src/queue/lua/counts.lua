-- ARGV: sets
local counts = {}
for i = 1, #ARGV do
  if string.match(ARGV[i], '^%l+$') then
    counts[#counts + 1] = redis.call('ZCARD', key(ARGV[i]))
  end
end
return counts
