-- ARGV: id
local id = ARGV[1]
local state = field(id, 'state')
if not state then
  return { 'none', '' }
end
if state ~= 'dead' and state ~= 'cancelled' then
  return { 'state', state }
end
local open = redis.call('HGET', key('unique'), unique(id))
if open then
  return { 'open', open }
end
redis.call('ZREM', key(state), id)
redis.call('HSET', key('unique'), unique(id), id)
redis.call('HDEL', job_key(id), 'cancel', 'error', 'ended_by', 'failed_by', 'furthest')
change(id, 'attempts', 0, 'takeovers', 0)
make_ready(id)
note(id, 'retried')
return { 'ready', id }
