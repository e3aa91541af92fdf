-- Common start of every script: keys, and changes of a job's state. The text before this sets `now`, in
-- milliseconds by the server's own clock, and `EVENTS_KEPT`.
--
-- KEYS[1] is the prefix of all keys. It has a hash tag, so all keys lie in one slot of a cluster, and a
-- script may build their names.
--
-- A script checks everything before its first write: scripts are atomic, but a failed one is not rolled back.

local SCHEMA = 1

local function key(name)
  return KEYS[1] .. name
end

local function job_key(id)
  return KEYS[1] .. 'job:' .. id
end

local schema = redis.call('HGET', key('meta'), 'schema')
if schema and tonumber(schema) > SCHEMA then
  return redis.error_reply('FOREIGN it has form ' .. schema .. ', and ' .. SCHEMA .. ' is the latest known here')
end

local function field(id, name)
  return redis.call('HGET', job_key(id), name)
end

local function number(id, name)
  return tonumber(field(id, name) or '0')
end

local function change(id, ...)
  redis.call('HSET', job_key(id), 'changed', now, ...)
end

local function note(id, what, details)
  redis.call('XADD', key('events'), 'MAXLEN', '~', EVENTS_KEPT, '*', 'at', now, 'id', id, 'what', what, 'details', details or '')
end

local function holds(id, token)
  return field(id, 'state') == 'running' and field(id, 'token') == token
end

-- Extends a lease at the request of its holder.
local function extend(id, lease)
  redis.call('ZADD', key('leases'), now + lease, id)
  redis.call('HDEL', job_key(id), 'spared')
end

-- Cuts values that are longer than `most` bytes.
local function cut(values, most)
  for i, value in ipairs(values) do
    if #value > most then
      values[i] = string.sub(value, 1, most)
    end
  end
  return values
end

-- Ends a lease. The caller sets the job's next state.
local function unlease(id)
  local token = field(id, 'token')
  if token then
    redis.call('HDEL', key('claims'), token)
    redis.call('HDEL', job_key(id), 'token')
  end
  redis.call('ZREM', key('leases'), id)
end

local function make_ready(id)
  redis.call('ZADD', key('ready'), field(id, 'score'), id)
  change(id, 'state', 'ready')
end

local function make_delayed(id, due)
  redis.call('ZADD', key('delayed'), due, id)
  change(id, 'state', 'delayed')
end

local function unique(id)
  return field(id, 'region') .. ':' .. field(id, 'server')
end

-- Closes a job, so that another one for the same server and region can be added.
local function close(id, state)
  redis.call('ZADD', key(state), now, id)
  change(id, 'state', state)
  if redis.call('HGET', key('unique'), unique(id)) == id then
    redis.call('HDEL', key('unique'), unique(id))
  end
end

-- Closes a cancelled job and returns true, unless the job has a journal: then a worker has to clean up first.
local function drop_cancelled(id)
  if not field(id, 'cancel') or field(id, 'journal') then
    return false
  end
  close(id, 'cancelled')
  note(id, 'cancelled')
  return true
end

local function promote_due()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', key('delayed'), id)
    make_ready(id)
  end
end
