-- Tries every command that the scripts use, on empty keys, and leaves nothing behind. Returns the refused
-- commands, each followed by the server's message.
--
-- KEYS[1] is the prefix of all keys. This script runs without the common start of the others.
local refused = {}
local function key(name)
  return KEYS[1] .. name
end
local function try(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = command
    refused[#refused + 1] = answer.err
    return false
  end
  return true
end
local hash, set, stream = key('probe:hash'), key('probe:set'), key('probe:stream')
try('TIME')
try('HGET', hash, 'one')
try('HGETALL', hash)
try('EXISTS', hash)
try('ZRANGE', set, 0, 0)
try('ZREVRANGE', set, 0, 0)
try('ZRANGEBYSCORE', set, '-inf', 1, 'LIMIT', 0, 1)
try('ZCARD', set)
try('XREVRANGE', stream, '+', '-', 'COUNT', 1)
-- Nothing is written unless it can be removed again.
if try('DEL', hash, set, stream) then
  try('HSET', hash, 'one', 1)
  try('HSETNX', hash, 'two', 1)
  try('HDEL', hash, 'one')
  try('ZADD', set, 1, 'one')
  try('ZREM', set, 'one')
  try('XADD', stream, 'MAXLEN', '~', 10, '*', 'one', 1)
  redis.call('DEL', hash, set, stream)
end
return refused
