-- Decisions about rate limits, one after the other: what chatgateway_core::limiter::table does.
-- KEYS: the prefix of all names; then buckets and marks, which the decisions name by their place.
-- ARGV: how long marks are kept, and held while tokens are reserved (ms); the margin of buckets (ms); the number of limits, for each its
-- two letters, its rate a minute and its burst; then the decisions.
-- A bucket is two doubles, units and microseconds, both whole numbers below 2^53. A mark is "1" (admitted), "s" (settled) or "tokens bucket bucket …".
local call, sub, match, gmatch, format, floor = redis.call, string.sub, string.match, string.gmatch, string.format, math.floor
local UNIT, PREFIX, KEPT, HELD, MARGIN = 60000000, KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local REFUSED, KNOWN, DONE, NOTHING = 0, 1, 2, 3
local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]
local CODE = #PREFIX + 1

local limits, at = {}, 5
for _ = 1, ARGV[4] do
  limits[ARGV[at]] = { rate = tonumber(ARGV[at + 1]), cap = ARGV[at + 2] * UNIT }
  at = at + 3
end

-- The buckets of this call, as they are now; false where no limit counts in it any more.
local buckets = {}
local function bucket(key)
  local known = buckets[key]
  if known ~= nil then
    return known
  end
  local limit = limits[sub(key, CODE, CODE + 1)]
  if not limit then
    buckets[key] = false
    return false
  end
  local rate, cap, level, stamp = limit.rate, limit.cap, limit.cap, NOW
  local kept = call('GET', key)
  if kept then
    level, stamp = struct.unpack('<dd', kept)
    level = math.min(level, cap)
    if NOW >= stamp then
      level, stamp = math.min(level + (NOW - stamp) * rate, cap), NOW
    elseif (stamp - NOW) * rate > cap then
      -- The clock was put far back: the bucket begins to fill from here. That must be kept.
      stamp = NOW
      kept = 'stale'
    end
  end
  known = { key = key, rate = rate, cap = cap, level = level, at = stamp, changed = kept == 'stale' }
  buckets[key] = known
  return known
end

-- Whether it counts tokens.
local function of_tokens(key)
  return sub(key, CODE + 1, CODE + 1) == 't'
end

local function give_back(key, count)
  local b = bucket(key)
  if b and count > 0 then
    b.level, b.changed = math.min(b.level + count * UNIT, b.cap), true
  end
end

-- The tokens that a mark holds, and the names of their buckets.
local function reserved(mark)
  local kept = call('GET', mark)
  if kept then
    return match(kept, '^(%d+) (.+)$')
  end
end

local out, n = { NOW }, 1

local function put(done, value)
  out[n + 1], out[n + 2] = done, value
  n = n + 2
end

local decide = {}

-- mark (0: none), tokens, number of buckets, buckets
function decide.t()
  local mark, tokens, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local first, done, cost = at + 3, DONE, tokens * UNIT
  at = first + count
  for i = first, at - 1 do
    local key = KEYS[tonumber(ARGV[i])]
    local b = bucket(key)
    if b and b.level < (of_tokens(key) and cost or UNIT) then
      done = REFUSED
      break
    end
  end
  if mark ~= '0' then
    mark = KEYS[tonumber(mark)]
    if done == REFUSED then
      done = call('EXISTS', mark) == 1 and KNOWN or REFUSED
    else
      local names = ''
      if tokens > 0 then
        for i = first, at - 1 do
          local key = KEYS[tonumber(ARGV[i])]
          if of_tokens(key) and buckets[key] then
            names = names .. ' ' .. sub(key, CODE)
          end
        end
      end
      local value, ttl = '1', KEPT
      if names ~= '' then
        value, ttl = format('%.0f', tokens) .. names, HELD
      end
      done = call('SET', mark, value, 'NX', 'PX', ttl) and DONE or KNOWN
    end
  end
  n = n + 1
  out[n] = done
  for i = first, at - 1 do
    local key = KEYS[tonumber(ARGV[i])]
    local b = bucket(key)
    if b and done == DONE then
      b.level, b.changed = b.level - (of_tokens(key) and cost or UNIT), true
    end
    n = n + 1
    out[n] = b and b.level or 0
  end
end

-- mark, tokens in all
function decide.x()
  local mark, tokens = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  at = at + 2
  local held, names = reserved(mark)
  if not held then
    return put(NOTHING, 0)
  end
  local more, wait = tokens - held, 0
  if more <= 0 then
    return put(DONE, tonumber(held))
  end
  for name in gmatch(names, '%S+') do
    local b = bucket(PREFIX .. name)
    if b and b.level < more * UNIT then
      wait = math.max(wait, floor((more * UNIT - b.level + b.rate - 1) / b.rate))
    end
  end
  if wait > 0 then
    return put(REFUSED, wait)
  end
  for name in gmatch(names, '%S+') do
    local b = bucket(PREFIX .. name)
    if b then
      b.level, b.changed = b.level - more * UNIT, true
    end
  end
  call('SET', mark, format('%.0f ', tokens) .. names, 'PX', HELD)
  put(DONE, tokens)
end

-- mark, tokens used
function decide.s()
  local mark, used = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  at = at + 2
  local held, names = reserved(mark)
  if not held then
    return put(NOTHING, 0)
  end
  local back = math.max(0, held - used)
  for name in gmatch(names, '%S+') do
    give_back(PREFIX .. name, back)
  end
  call('SET', mark, 's', 'PX', KEPT)
  put(DONE, back)
end

-- mark, number of buckets, buckets of requests
function decide.u()
  local mark, first = KEYS[tonumber(ARGV[at])], at + 2
  at = first + ARGV[at + 1]
  local kept = call('GET', mark)
  if not kept or kept == 's' then
    return put(NOTHING, 0)
  end
  local held, names = match(kept, '^(%d+) (.+)$')
  local back = tonumber(held or 0)
  for name in gmatch(names or '', '%S+') do
    give_back(PREFIX .. name, back)
  end
  for i = first, at - 1 do
    give_back(KEYS[tonumber(ARGV[i])], 1)
  end
  call('DEL', mark)
  put(DONE, back)
end

-- bucket, units
function decide.o()
  local b, units = bucket(KEYS[tonumber(ARGV[at])]), tonumber(ARGV[at + 1])
  at = at + 2
  if not b then
    return put(NOTHING, 0)
  end
  units = math.min(units, b.level)
  b.level, b.changed = b.level - units, true
  put(DONE, units)
end

local last = #ARGV
while at <= last do
  local op = ARGV[at]
  at = at + 1
  decide[op]()
end

for key, b in pairs(buckets) do
  if b and b.changed then
    local full = floor((b.cap - b.level) / (b.rate * 1000)) + floor(math.max(0, b.at - NOW) / 1000)
    call('SET', key, struct.pack('<dd', b.level, b.at), 'PX', full + MARGIN)
  end
end
return out
