-- ARGV: a hash, the longest value that is given whole
-- Field by field. Whoever may write here may write values of half a GiB.
return cut(redis.call('HGETALL', key(ARGV[1])), tonumber(ARGV[2]))
