-- ARGV: id, token, lease in ms, step, journal, number of the step that this ends, or 0
local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return 'lost'
end
extend(id, tonumber(ARGV[3]))
if field(id, 'step') ~= ARGV[4] then
  note(id, 'step', ARGV[4])
end
change(id, 'step', ARGV[4], 'journal', ARGV[5])
-- Repeated steps are no progress: each worker that takes over a job repeats them, even if the job then kills
-- the worker.
local through = tonumber(ARGV[6])
if through > number(id, 'furthest') then
  change(id, 'furthest', through, 'takeovers', 0)
end
return field(id, 'cancel') and 'cancelled' or 'on'
