-- ARGV: worker, token, lease in ms
local worker, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
redis.call('HSET', key('workers'), worker, now)
-- The response to an earlier call may have been lost.
local again = redis.call('HGET', key('claims'), token)
if again and holds(again, token) then
  return again
end
promote_due()
local next = redis.call('ZRANGE', key('ready'), 0, 0)
if #next == 0 then
  return false
end
local id = next[1]
redis.call('ZREM', key('ready'), id)
change(id, 'state', 'running', 'token', token, 'worker', worker, 'deliveries', number(id, 'deliveries') + 1)
redis.call('HSET', key('claims'), token, id)
extend(id, lease)
note(id, 'claimed', worker)
return id
