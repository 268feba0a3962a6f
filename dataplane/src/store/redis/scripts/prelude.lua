-- Common to all scripts of one session. Every call names all its keys, whether it uses them or not.
local LOG, SES, DLG, CH = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call, format, match = redis.call, string.format, string.match
-- The store's clock in microseconds, read once: it moves while a script runs.
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

-- Digits, all of them: what tostring makes of an epoch is 1.79e+15.
local function whole(number)
  return format('%.0f', number)
end

-- The id of the log's last entry; nil without a log.
local function log_end()
  local last = call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
  return last and last[1]
end

local function in_log(id)
  return id ~= '0' and #call('XRANGE', LOG, id, id) > 0
end

-- A turn's record: state, seq, hash, start, from, end, tries, cancel.
local function parse(record)
  return match(record, '^(%a+) (%d+) (%x+) (%S+) (%S+) (%S+) (%d+) (%d)$')
end

-- An epoch that was never given: the clock's, or a random step above the last one.
local function new_epoch(stored, last, jump)
  local top = tonumber(stored)
  if last then
    top = math.max(top, tonumber(match(last, '^%d+')))
  end
  return whole(NOW > top and NOW or top + 1 + jump)
end

local function lease_until(lease_us)
  return whole(NOW + lease_us)
end

-- Rounded up, so that 0 means over.
local function lease_left_ms(owner, lease)
  return owner ~= '' and math.max(0, math.ceil((lease - NOW) / 1000)) or 0
end

-- All keys end in one instant.
local function expire(ttl_ms)
  local at = whole(math.ceil(NOW / 1000 + ttl_ms))
  call('PEXPIREAT', SES, at)
  call('PEXPIREAT', LOG, at)
  call('PEXPIREAT', DLG, at)
end

-- Tells the followers of an entry. Returns how many there are.
local function tell(id, fields)
  local message, n = { 'E ', id, '\n' }, 3
  for i = 1, #fields, 2 do
    local value = fields[i + 1]
    message[n + 1], message[n + 2], message[n + 3] = fields[i], ' ', #value
    message[n + 4], message[n + 5], message[n + 6] = '\n', value, '\n'
    n = n + 6
  end
  return call('SPUBLISH', CH, table.concat(message))
end

-- How many follow. They ignore it.
local function followers()
  return call('SPUBLISH', CH, '')
end

local function reply(receivers, ...)
  return { SES, whole(NOW), receivers, ... }
end

-- What the owner of a turn has to know of it, beside the log's end and length.
local function work(turn, record, text, extra)
  local _, seq, hash, start, _, _, tries, cancel = parse(record)
  return turn, seq, text, extra or '', hash, start, cancel, tries
end

-- What a lost log told is gone: there is nothing to cut it at. Adds the counter to the fields that will be set.
local function forget_kept(fields, first, last)
  for n = tonumber(first or 0), tonumber(last or 0) - 1 do
    call('HDEL', SES, 'k:' .. n)
  end
  fields[#fields + 1], fields[#fields + 2] = 'kh', last or '0'
end
