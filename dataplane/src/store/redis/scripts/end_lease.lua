-- The caller's lease is over now.
local root = call('HMGET', SES, 'epoch', 'owner')
if root[2] ~= ARGV[1] or root[1] ~= ARGV[2] then
  return reply(-1, 0)
end
call('HSET', SES, 'lease', whole(NOW))
return reply(-1, 1)
