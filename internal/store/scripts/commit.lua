-- Commit Zoom's answer to a refresh.
--
-- ARGV[2] fingerprint of the refresh token that was spent
-- ARGV[3] fingerprint of its successor
-- ARGV[4] successor, sealed
-- ARGV[5] access token, sealed
-- ARGV[6] when it was issued, ms
-- ARGV[7] when it expires, ms
-- ARGV[8] when to renew it, ms
--
-- Zoom issues one successor of each token, so the predecessor decides, not the
-- lease: whoever brings the successor of what is stored is right, even late,
-- even after a failure was recorded. Replaying a commit changes nothing. Should
-- Zoom take a token twice after all, the later of the two answers is the one
-- that it honours.

local stored = get('refresh_fingerprint')
if not stored then return {'missing'} end
local spent, successor = ARGV[2], ARGV[3]
if stored == successor and stored ~= spent then return {'already'} end
local sibling = get('predecessor') == spent and number('refreshed') < tonumber(ARGV[6])
if stored ~= spent and not sibling then return {'superseded'} end
if spent == successor and number('expires') >= tonumber(ARGV[7]) then
  return {'already'} -- Zoom kept the refresh token, and this answer is known
end

redis.call('HSET', grant, 'refresh', ARGV[4], 'refresh_fingerprint', successor, 'predecessor', spent,
  'access', ARGV[5], 'refreshed', ARGV[6], 'expires', ARGV[7], 'plan', ARGV[8])
redis.call('HDEL', grant, 'lease', 'lease_until', 'intent', 'uncertain',
  'failures', 'retry_at', 'gone', 'handed')
if get('credential') then redis.call('HDEL', grant, 'reason') end
if get('deleting') then
  redis.call('ZREM', due, id)
else
  redis.call('ZADD', due, ARGV[8], id)
end
settle()
return {'committed'}
