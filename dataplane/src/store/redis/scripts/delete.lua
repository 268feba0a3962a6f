-- Remove the session. What stays for a while is its last epoch, above which a new log begins, and that its turns were
-- deleted, so that late copies of them do not bring it back.
local root = call('HMGET', SES, 'epoch', 'owner', 'run', 'q', 'eh', 'et')
local last = log_end()
if not root[1] then
  -- Without its root a log or a history is nobody's.
  call('DEL', LOG, DLG)
  return reply(call('SPUBLISH', CH, 'D'), '')
end
local epoch = tonumber(root[1])
if last then
  epoch = math.max(epoch, tonumber(match(last, '^%d+')))
end
local all = call('HGETALL', SES)
local ended = {}
local values = {}
local fields = { 'epoch', whole(epoch), 'seq', '0' }
for i = 1, #all, 2 do
  local kind = string.sub(all[i], 1, 2)
  if kind == 't:' then
    fields[#fields + 1], fields[#fields + 2] = all[i], 'deleted' .. match(all[i + 1], ' .*$')
  elseif kind == 'e:' then
    values[all[i]] = all[i + 1]
  end
end
for n = tonumber(root[5] or 0), tonumber(root[6] or 0) - 1 do
  ended[#ended + 1] = values['e:' .. n]
end
if (root[3] or '') ~= '' then
  ended[#ended + 1] = root[3]
end
for turn in string.gmatch(root[4] or '', '[^\n]+') do
  ended[#ended + 1] = turn
end
for n, turn in ipairs(ended) do
  fields[#fields + 1], fields[#fields + 2] = 'e:' .. n - 1, turn
end
fields[#fields + 1], fields[#fields + 2] = 'et', #ended
call('DEL', SES, LOG, DLG)
-- In pieces: a call takes only so many arguments.
for i = 1, #fields, 1000 do
  call('HSET', SES, unpack(fields, i, math.min(i + 999, #fields)))
end
call('PEXPIREAT', SES, whole(math.ceil(NOW / 1000 + ARGV[1])))
return reply(call('SPUBLISH', CH, 'D'), root[2] or '')
