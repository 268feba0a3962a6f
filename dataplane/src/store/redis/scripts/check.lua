-- Renew the caller's lease, also one that has run out unclaimed, and look.
local pod, epoch, lease_us, idle_ms, busy_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local root = call('HMGET', SES, 'epoch', 'owner', 'run', 'q')
if not root[1] then
  return reply(followers(), 0, '', 0, 0, 0)
end
local run, queue = root[3] or '', root[4] or ''
local mine = root[2] == pod and root[1] == epoch
local cancel = 0
if mine then
  local record = run ~= '' and call('HGET', SES, 't:' .. run)
  cancel = record and tonumber(string.sub(record, -1)) or 0
  call('HSET', SES, 'lease', lease_until(lease_us))
  expire((run ~= '' or queue ~= '') and busy_ms or idle_ms)
end
local _, waiting = string.gsub(queue, '[^\n]+', '')
return reply(followers(), mine and 1 or 0, log_end() or '', call('XLEN', LOG), cancel, waiting)
