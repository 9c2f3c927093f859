-- Change a record if it still has the version that was read.
--
-- ARGV[2]    version that was read
-- ARGV[3]    id of this change: a repeated call returns its result
-- ARGV[4..]  fields and values; an empty value removes the field

local version = get('version')
if not version then return {'missing'} end
if version ~= ARGV[2] then
  if get('change') ~= ARGV[3] then return {'conflict'} end
  return {'changed', redis.call('HGETALL', grant)}
end

local before = zoom_user()
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', grant, ARGV[i])
  else
    redis.call('HSET', grant, ARGV[i], ARGV[i + 1])
  end
end
move_zoom_user(before)
redis.call('HSET', grant, 'change', ARGV[3])
if get('deleting') then redis.call('ZREM', due, id) end
finish_change()
return {'changed', redis.call('HGETALL', grant)}
