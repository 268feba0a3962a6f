-- Void the running turn's text: from this entry on the log tells it anew.
local pod, epoch, follows, len, turn, fits, id = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local root = call('HMGET', SES, 'epoch', 'owner', 'run', 'base')
local last = log_end()
if root[1] ~= epoch or root[2] ~= pod or root[3] ~= turn or not last then
  return reply(followers(), 0)
end
local length = call('XLEN', LOG)
if last == id and length == len + 1 and root[4] == follows then
  -- A repeat: the first copy went in.
  return reply(followers(), 1)
end
if last ~= follows or length ~= len or fits ~= '1' then
  return reply(followers(), 0)
end
local entry = { unpack(ARGV, 8) }
call('XADD', LOG, id, unpack(entry))
call('HSET', SES, 'base', follows)
return reply(tell(id, entry), 1)
