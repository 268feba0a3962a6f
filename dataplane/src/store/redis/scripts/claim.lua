-- Take a session whose lease is over, or start anew after the store lost entries.
local pod, nonce, why, lost_epoch, jump, lease_us, busy_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local root = call('HMGET', SES, 'epoch', 'owner', 'nonce', 'lease', 'run', 'base', 'q', 'kh', 'kt')
local owner, run, queue = root[2] or '', root[5] or '', root[7] or ''
if owner == '' then
  return reply(followers(), 'nothing')
end
local last = log_end()

if owner == pod and root[3] == nonce then
  -- A repeat of this very request.
  local mine = run ~= '' and call('HMGET', SES, 't:' .. run, 'b:' .. run, 'x:' .. run)
  if not (mine and mine[1] and mine[2]) then
    return reply(followers(), 'nothing')
  end
  call('HSET', SES, 'lease', lease_until(lease_us))
  local len = call('XLEN', LOG)
  return reply(followers(), 'owner', '', '', root[1], last or '0', len, work(run, mine[1], mine[2], mine[3]))
end
local over = why == 'expired' and tonumber(root[4]) <= NOW
local loss = why == 'loss' and owner == pod and root[1] == lost_epoch
if not over and not loss then
  return reply(followers(), 'nothing')
end

local epoch = new_epoch(root[1], last, jump)
local id, from = epoch .. '-0', last or '0'
local turn, rest, base, entry = run, queue, root[6], nil
if run == '' then
  turn, rest = match(queue, '^([^\n]+)\n?(.*)$')
end
local task = turn and call('HMGET', SES, 't:' .. turn, 'b:' .. turn, 'x:' .. turn)
if not (task and task[1] and task[2]) then
  -- Nothing to do: nobody has to own it.
  call('HSET', SES, 'owner', '', 'nonce', '')
  return reply(followers(), 'nothing')
end
local _, seq, hash, start, its_from, _, tries, cancel = parse(task[1])
local kind
if run ~= '' then
  kind = 'takeover'
  entry = { 'k', 'o', 't', turn, 'p', from, 'w', why }
  tries = tries + 1
  start = in_log(start) and start or '0'
  -- What a lost log told is gone: the new one is complete from its beginning.
  base = last and base or '0'
else
  kind = 'turn'
  entry = { 'k', 't', 't', turn, 'p', from, 's', seq, 'x', task[2] }
  start, its_from, base = id, from, from
end
call('XADD', LOG, id, unpack(entry))
task[1] = format('running %s %s %s %s 0 %s %s', seq, hash, start, its_from, tries, cancel)
local fields = {
  'epoch', epoch, 'owner', pod, 'nonce', nonce, 'lease', lease_until(lease_us), 'run', turn, 'base', base, 'q', rest,
  't:' .. turn, task[1],
}
if not last then
  forget_kept(fields, root[8], root[9])
end
call('HSET', SES, unpack(fields))
expire(busy_ms)
local len = call('XLEN', LOG)
return reply(tell(id, entry), 'owner', kind, from, epoch, id, len, work(turn, task[1], task[2], task[3]))
