-- Entries after a position, with what is needed to judge whether the position is good.
local root = call('HMGET', SES, 'seq', 'run', 'q', 'owner', 'lease', 'base')
if (root[1] or '0') == '0' then
  return reply(-1, 0)
end
local last, first, entries = log_end(), '0', {}
if last then
  local head = call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
  -- What it follows; or its own id, where that is simply one less.
  first = head[2][5] == 'p' and head[2][6] or '>' .. head[1]
  entries = call('XRANGE', LOG, '(' .. ARGV[1], '+', 'COUNT', ARGV[2]) or {}
end
local owner = root[4] or ''
local unfinished = ((root[2] or '') ~= '' or (root[3] or '') ~= '') and 1 or 0
local base = last and root[6] or '0'
return reply(-1, 1, first, last or '0', base, unfinished, owner, lease_left_ms(owner, root[5]), entries)
