-- Restore a grant from a backup, unless there is one.
--
-- ARGV[2]    reason, for people
-- ARGV[3..]  fields and values
--
-- The refresh token may have been spent since the backup: it is uncertain, and is
-- tried once.

if redis.call('EXISTS', grant) == 1 then return {'exists'} end
for i = 3, #ARGV, 2 do redis.call('HSET', grant, ARGV[i], ARGV[i + 1]) end
redis.call('HDEL', grant, 'access', 'expires')
local at = text(now())
if not get('gone') then
  redis.call('HSET', grant, 'uncertain', '1', 'intent', at, 'renew_at', at, 'failures', '1', 'reason', ARGV[2])
  if not get('deleting') then redis.call('ZADD', due, at, id) end
end
move_zoom_user(nil)
finish_change()
return {'restored'}
