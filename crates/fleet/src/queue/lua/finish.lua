-- ARGV: id, token, state, result or error
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
-- The response to an earlier call may have been lost.
if field(id, 'state') == state and field(id, 'ended_by') == token then
  return 'on'
end
if not holds(id, token) then
  return 'lost'
end
unlease(id)
close(id, state)
if state == 'done' then
  redis.call('HSET', key('good'), unique(id), string.format('%.0f %s %s', now, id, ARGV[4]))
  change(id, 'ended_by', token, 'result', ARGV[4])
elseif state == 'dead' then
  change(id, 'ended_by', token, 'error', ARGV[4], 'attempts', number(id, 'attempts') + 1)
else
  change(id, 'ended_by', token)
end
-- A result is long, and is stored with the job.
note(id, state, state == 'done' and '' or ARGV[4])
return 'on'
