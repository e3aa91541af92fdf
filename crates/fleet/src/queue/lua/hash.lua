-- ARGV: name of a hash, maximum length of a value
-- Long values are cut, because a client with write access can store values of half a GiB.
return cut(redis.call('HGETALL', key(ARGV[1])), tonumber(ARGV[2]))
