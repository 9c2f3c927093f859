-- Change a record, if it is still the one that was read. Version 0 creates it.
--
-- ARGV[2]    version that was read
-- ARGV[3]    mark of this one change: a replay of it is answered as done
-- ARGV[4]    '' (leave the plan), 'never', or when to renew, ms
-- ARGV[5]    '1' if this is a new consent, which ends what was said of the last
-- ARGV[6..]  fields and values; an empty value removes the field

local version = get('version') or '0'
if version ~= ARGV[2] then
  if get('change') ~= ARGV[3] then return {'conflict'} end
  return {'changed', redis.call('HGETALL', grant)}
end

if ARGV[5] == '1' then
  redis.call('HDEL', grant, 'lease', 'lease_until', 'intent', 'uncertain',
    'failures', 'retry_at', 'gone', 'reason', 'handed', 'predecessor')
  redis.call('HSET', grant, 'plan', ARGV[4])
end
local before = zoom_user()
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', grant, ARGV[i])
  else
    redis.call('HSET', grant, ARGV[i], ARGV[i + 1])
  end
end
local after = zoom_user()
if before ~= after then
  if before then redis.call('ZREM', zoom_users, before) end
  if after then redis.call('ZADD', zoom_users, 0, after) end
end
redis.call('HSET', grant, 'change', ARGV[3])
redis.call('HSETNX', grant, 'created', text(now()))
if ARGV[4] == 'never' then
  redis.call('ZREM', due, id)
elseif ARGV[4] ~= '' then
  redis.call('ZADD', due, ARGV[4], id)
end
settle()
return {'changed', redis.call('HGETALL', grant)}
