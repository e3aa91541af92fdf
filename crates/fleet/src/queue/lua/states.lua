-- What every script begins with: the keys, and how a job passes from one state to another. Set before this are `now`, in milliseconds, by the
-- server's own clock, and `EVENTS_KEPT`.
-- KEYS[1] is what all keys begin with. It has a hash tag, so all of them lie in one slot of a cluster, and may be put together here.
-- A script checks everything before it writes anything: scripts are atomic, but nothing is rolled back.

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

-- Extends a lease at a word of its holder.
local function extend(id, lease)
  redis.call('ZADD', key('leases'), now + lease, id)
  redis.call('HDEL', job_key(id), 'spared')
end

-- The fronts of values that are longer than that.
local function cut(values, most)
  for i, value in ipairs(values) do
    if #value > most then
      values[i] = string.sub(value, 1, most)
    end
  end
  return values
end

-- Ends a lease, whatever the job becomes.
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

-- Ends a job's life. Another one for the same server and region may begin.
local function close(id, state)
  redis.call('ZADD', key(state), now, id)
  change(id, 'state', state)
  if redis.call('HGET', key('unique'), unique(id)) == id then
    redis.call('HDEL', key('unique'), unique(id))
  end
end

-- A job that was cancelled is over, unless it has begun: then a worker has to remove what it made.
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
