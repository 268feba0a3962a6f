-- The texts so far, and the position from which the log tells the rest, as one.
local root = call('HMGET', SES, 'seq', 'run', 'base')
if (root[1] or '0') == '0' then
  return reply(-1, 0)
end
local base = log_end() and root[3] or '0'
local history = call('ZRANGE', DLG, 0, -1)
local run = root[2] or ''
local running = run ~= '' and call('HMGET', SES, 't:' .. run, 'b:' .. run)
if running and running[1] and running[2] then
  local _, seq = parse(running[1])
  return reply(-1, 1, base, history, run, seq, running[2])
end
return reply(-1, 1, base, history)
