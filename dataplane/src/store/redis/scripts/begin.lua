-- Accept a turn: own the session, queue the turn, or recognise it.
local pod, nonce, turn, seq, hash, text, extra = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local jump, lease_us, busy_ms, queue_max = ARGV[8], ARGV[9], ARGV[10], tonumber(ARGV[11])
local root = call('HMGET', SES, 'epoch', 'owner', 'nonce', 'lease', 'run', 'base', 'seq', 'q', 'kh', 'kt', 't:' .. turn)
local known = root[1]
local owner, run, queue = root[2] or '', root[5] or '', root[8] or ''
local last = log_end()

local waiting, place = 0, 0
for other in string.gmatch(queue, '[^\n]+') do
  waiting = waiting + 1
  if other == turn then
    place = waiting - 1 + (run ~= '' and 1 or 0)
  end
end

if root[11] then
  local state, its_seq, its_hash, start, from, ended_at, tries, cancel = parse(root[11])
  if its_hash ~= hash then
    return reply(followers(), 'conflict')
  elseif state == 'deleted' then
    return reply(followers(), 'gone')
  elseif state == 'running' and run == turn and owner == pod and root[3] == nonce then
    -- The first copy of this very request: only its reply was lost.
    call('HSET', SES, 'lease', lease_until(lease_us))
    expire(busy_ms)
    local len = call('XLEN', LOG)
    return reply(followers(), 'owner', root[1], last or '0', len, its_seq, start, cancel, tries, from, 0)
  end
  local there = in_log(start)
  if state == 'queued' then
    from = ''
  elseif state == 'running' and not there then
    -- Where the log that held its beginning is lost, the new log tells all there is.
    from = last and root[6] or '0'
  elseif not there then
    from = ''
  end
  if state == 'queued' or state == 'running' then
    ended_at = ''
  end
  return reply(followers(), 'known', state, its_seq, place, from, ended_at, last or '0')
end

local next_seq = whole((root[7] or 0) + 1)
if seq ~= '' and seq ~= next_seq then
  return reply(followers(), 'seq_gap', next_seq)
end
if owner ~= '' and waiting >= queue_max then
  return reply(followers(), 'busy')
end

if owner ~= '' then
  local record = format('queued %s %s 0 0 0 0 0', next_seq, hash)
  local fields = { 'seq', next_seq, 't:' .. turn, record, 'b:' .. turn, text, 'q', queue == '' and turn or queue .. '\n' .. turn }
  if extra ~= '' then
    fields[9], fields[10] = 'x:' .. turn, extra
  end
  call('HSET', SES, unpack(fields))
  expire(busy_ms)
  place = waiting + (run ~= '' and 1 or 0)
  return reply(followers(), 'queued', next_seq, place, last or '0', owner, lease_left_ms(owner, root[4]))
end

local epoch = new_epoch(known or 0, last, jump)
if not known and (last or call('EXISTS', DLG) == 1) then
  -- Without its root a log or a history is nobody's. (Not where there is none: the first write decides whether memory
  -- that is full refuses the script.)
  call('DEL', LOG, DLG)
  last = nil
end
local id, from = epoch .. '-0', last or '0'
local entry = { 'k', 't', 't', turn, 'p', from, 's', next_seq, 'x', text }
call('XADD', LOG, id, unpack(entry))
local record = format('running %s %s %s %s 0 0 0', next_seq, hash, id, from)
local fields = {
  'epoch', epoch, 'owner', pod, 'nonce', nonce, 'lease', lease_until(lease_us), 'run', turn, 'base', from,
  'seq', next_seq, 't:' .. turn, record, 'b:' .. turn, text,
}
if extra ~= '' then
  fields[#fields + 1], fields[#fields + 2] = 'x:' .. turn, extra
end
if not last then
  forget_kept(fields, root[9], root[10])
end
call('HSET', SES, unpack(fields))
expire(busy_ms)
return reply(tell(id, entry), 'owner', epoch, id, call('XLEN', LOG), next_seq, id, '0', '0', from, 1)
