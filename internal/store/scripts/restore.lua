-- Put a grant back that a backup has kept, unless there is one.
--
-- ARGV[2]    reason, for people
-- ARGV[3..]  fields and values
--
-- Its refresh token may have been spent since: it is uncertain, and tried once.

if redis.call('EXISTS', grant) == 1 then return {'exists'} end
for i = 3, #ARGV, 2 do redis.call('HSET', grant, ARGV[i], ARGV[i + 1]) end
redis.call('HDEL', grant, 'access', 'expires')
local at = text(now())
if not get('gone') then
  redis.call('HSET', grant, 'uncertain', '1', 'intent', at, 'plan', at, 'failures', '1', 'reason', ARGV[2])
  if not get('deleting') then redis.call('ZADD', due, at, id) end
end
move_zoom_user(nil)
settle()
return {'revived'}
