-- End the running turn; go on with the next one, or release the session. One step: see the protocol.
local pod, epoch, follows, len, turn, fits, state = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local id, next_id, answer, meta, keep = ARGV[8], ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12])
local lease_us, idle_ms, busy_ms, records_max = ARGV[13], ARGV[14], ARGV[15], tonumber(ARGV[16])
local root = call('HMGET', SES, 'epoch', 'owner', 'run', 'q', 'eh', 'et', 'kh', 'kt', 't:' .. turn, 'b:' .. turn)
local last = log_end()
local mine = root[1] == epoch and root[2] == pod
local run = root[3] or ''

local was, seq, hash, start, from, _, tries, cancel
if root[9] then
  was, seq, hash, start, from, _, tries, cancel = parse(root[9])
end
if was == 'done' or was == 'failed' or was == 'cancelled' then
  local now_running = mine and run ~= '' and call('HMGET', SES, 't:' .. run, 'b:' .. run, 'x:' .. run)
  if now_running and now_running[1] and now_running[2] then
    local length = call('XLEN', LOG)
    return reply(followers(), 'already', epoch, last or '0', length, work(run, now_running[1], now_running[2], now_running[3]))
  end
  return reply(followers(), 'already')
end
-- The length too: where a proxy hid a failover, the end may fit although entries before it are lost.
if fits ~= '1' or not mine or run ~= turn or not was or last ~= follows or call('XLEN', LOG) ~= len then
  return reply(followers(), 'refused')
end

-- Everything is read and put together before the first write: an error would not undo it.
local text = root[10]
local entry = { unpack(ARGV, 17) }
local fields = { 't:' .. turn, format('%s %s %s %s %s %s %s %s', state, seq, hash, start, from, id, tries, cancel), 'base', id }
local gone = { 'b:' .. turn, 'x:' .. turn }

-- Records of ended turns are bounded: the oldest is given up.
local first_ended, ended = tonumber(root[5] or 0), tonumber(root[6] or 0)
fields[5], fields[6], fields[7], fields[8] = 'e:' .. ended, turn, 'et', ended + 1
if ended + 1 - first_ended > records_max then
  repeat
    gone[#gone + 1] = 't:' .. call('HGET', SES, 'e:' .. first_ended)
    gone[#gone + 1] = 'e:' .. first_ended
    first_ended = first_ended + 1
  until ended + 1 - first_ended <= records_max
  fields[9], fields[10] = 'eh', first_ended
end

-- The log may be cut where an ended turn begins: the last ones stay.
local first_kept, kept = tonumber(root[7] or 0), tonumber(root[8] or 0)
local n = #fields
if start ~= '0' then
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'k:' .. kept, start, 'kt', kept + 1
  kept = kept + 1
  n = n + 4
end
local bound, cut = math.max(keep, 1), nil
if kept - first_kept > bound then
  repeat
    gone[#gone + 1] = 'k:' .. first_kept
    first_kept = first_kept + 1
  until kept - first_kept <= bound
  fields[n + 1], fields[n + 2] = 'kh', first_kept
  n = n + 2
  cut = first_kept == kept - 1 and start ~= '0' and start or call('HGET', SES, 'k:' .. first_kept)
end

local queue, started = root[4] or '', nil
local following, rest = match(queue, '^([^\n]+)\n?(.*)$')
local waiting = following and call('HMGET', SES, 't:' .. following, 'b:' .. following, 'x:' .. following)
if waiting and waiting[1] and waiting[2] then
  local _, its_seq, its_hash, _, _, _, its_tries, its_cancel = parse(waiting[1])
  started = { 'k', 't', 't', following, 's', its_seq, 'x', waiting[2] }
  waiting[1] = format('running %s %s %s %s 0 %s %s', its_seq, its_hash, next_id, id, its_tries, its_cancel)
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 't:' .. following, waiting[1], 'run', following
  fields[n + 5], fields[n + 6], fields[n + 7], fields[n + 8] = 'q', rest, 'lease', lease_until(lease_us)
else
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'run', '', 'owner', ''
  fields[n + 5], fields[n + 6], fields[n + 7], fields[n + 8] = 'nonce', '', 'q', rest or ''
end

call('XADD', LOG, id, unpack(entry))
if started then
  call('XADD', LOG, next_id, unpack(started))
end
call('HSET', SES, unpack(fields))
call('HDEL', SES, unpack(gone))

-- A turn that failed is no part of the conversation.
if text and state ~= 'failed' then
  call('ZADD', DLG, seq, table.concat({ seq, ' ', #meta, ' ', #text, ' ', #answer, '\n', meta, text, answer }))
  -- There are no more rows than turns.
  if tonumber(seq) > keep then
    call('ZREMRANGEBYRANK', DLG, 0, -keep - 1)
  end
end
len = len + (started and 2 or 1)
if cut then
  len = len - call('XTRIM', LOG, 'MINID', '=', cut)
end
expire((started or rest and rest ~= '') and busy_ms or idle_ms)
local receivers = tell(id, entry)
if not started then
  return reply(receivers, 'ended')
end
return reply(tell(next_id, started), 'ended', epoch, next_id, len, work(following, waiting[1], waiting[2], waiting[3]))
