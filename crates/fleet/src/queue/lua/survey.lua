-- ARGV: place, leftovers
redis.call('HSETNX', key('meta'), 'schema', SCHEMA)
redis.call('HSET', key('surveys'), ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
return redis.status_reply('OK')
