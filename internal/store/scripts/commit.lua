-- Commit Zoom's response to a refresh.
--
-- ARGV[2] fingerprint of the spent refresh token
-- ARGV[3] fingerprint of its successor
-- ARGV[4] successor, encrypted
-- ARGV[5] access token, encrypted
-- ARGV[6] issue time, ms
-- ARGV[7] expiry, ms
-- ARGV[8] renewal time, ms
--
-- Zoom issues one successor of each token. So the stored token decides, not the
-- lease: the successor of the stored token is accepted, even late, and even after a
-- recorded failure. A repeated commit changes nothing. If Zoom has accepted a token
-- twice, the later response is the valid one.

local stored = get('refresh_fingerprint')
if not stored then return {'missing'} end
local spent, successor = ARGV[2], ARGV[3]
if stored == successor and stored ~= spent then return {'already'} end
local sibling = get('predecessor') == spent and number('refreshed') < tonumber(ARGV[6])
if stored ~= spent and not sibling then return {'superseded'} end
if spent == successor and number('expires') >= tonumber(ARGV[7]) then
  return {'already'} -- Zoom kept the refresh token, and this response is stored
end

redis.call('HSET', grant, 'refresh', ARGV[4], 'refresh_fingerprint', successor, 'predecessor', spent,
  'access', ARGV[5], 'refreshed', ARGV[6], 'expires', ARGV[7], 'renew_at', ARGV[8])
redis.call('HDEL', grant, 'lease', 'lease_until', 'intent', 'uncertain',
  'failures', 'retry_at', 'gone', 'served')
if get('credential') then redis.call('HDEL', grant, 'reason') end
if get('deleting') then
  redis.call('ZREM', due, id)
else
  redis.call('ZADD', due, ARGV[8], id)
end
finish_change()
return {'committed'}
