-- A pod process lives, or goes away (score 0). Returns the clock, since when there was no silence, and the others, the longest
-- silent first.
-- KEYS: pods. ARGV: pod, 1 if it goes away, how many others at most, how many microseconds without any beat are a silence.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- Among the pods stands since when there was no silence: their beats tell whether the server could be reached.
local since = redis.call('ZSCORE', KEYS[1], 'since')
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
if not since or now - last > tonumber(ARGV[4]) then
  since = string.format('%.0f', now)
  redis.call('ZADD', KEYS[1], since, 'since')
end
redis.call('ZADD', KEYS[1], ARGV[2] == '1' and '0' or string.format('%.0f', now), ARGV[1])
return {string.format('%.0f', now), since, redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[3]), 'WITHSCORES')}
