-- A pod process lives, or goes away (score 0). Returns the clock and the others, the longest silent first.
-- KEYS: pods. ARGV: pod, 1 if it goes away, how many others at most.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZADD', KEYS[1], ARGV[2] == '1' and '0' or string.format('%.0f', now), ARGV[1])
return {string.format('%.0f', now), redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[3]), 'WITHSCORES')}
