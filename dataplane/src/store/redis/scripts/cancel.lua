-- Mark a turn as cancelled. Only its owner ends it.
local turn = ARGV[1]
local root = call('HMGET', SES, 't:' .. turn, 'owner')
local state = root[1] and match(root[1], '^%a+') or ''
if state == 'queued' or state == 'running' then
  call('HSET', SES, 't:' .. turn, string.sub(root[1], 1, -2) .. '1')
end
return reply(-1, state, root[2] or '')
