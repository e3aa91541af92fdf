-- ARGV: id, token, lease in ms, step, journal, the place of the step that this ends; 0 where it ends none
local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return 'lost'
end
extend(id, tonumber(ARGV[3]))
if field(id, 'step') ~= ARGV[4] then
  note(id, 'step', ARGV[4])
end
change(id, 'step', ARGV[4], 'journal', ARGV[5])
-- Steps that were taken before are no progress: a job that kills its workers gets through them with each.
local through = tonumber(ARGV[6])
if through > number(id, 'furthest') then
  change(id, 'furthest', through, 'takeovers', 0)
end
return field(id, 'cancel') and 'cancelled' or 'on'
