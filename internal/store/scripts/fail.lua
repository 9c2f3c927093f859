-- Record that a refresh failed, and let go of the lease.
--
-- ARGV[2] who claimed
-- ARGV[3] fingerprint of the refresh token
-- ARGV[4] 'unspent' (Zoom did not take the token), 'uncertain' (nobody knows),
--         'gone' (the user must authorize again), or 'released' (not the
--         grant's fault: as if it had never been claimed)
-- ARGV[5] how long to wait before the next attempt, ms
-- ARGV[6] reason, for people
--
-- Only the holder of the lease may, and only for the token that is stored: a
-- failure never beats somebody's success.

if get('lease') ~= ARGV[2] or get('refresh_fingerprint') ~= ARGV[3] then return {'stale'} end

redis.call('HDEL', grant, 'lease', 'lease_until')
if ARGV[4] == 'released' then
  if not get('uncertain') then redis.call('HDEL', grant, 'intent') end
  redis.call('ZADD', due, text(now() + tonumber(ARGV[5])), id)
  return {'released'}
end
redis.call('HINCRBY', grant, 'failures', 1)
redis.call('HSET', grant, 'reason', ARGV[6])
if ARGV[4] == 'gone' then
  redis.call('HSET', grant, 'gone', '1')
  redis.call('HDEL', grant, 'intent', 'uncertain', 'retry_at')
  redis.call('ZREM', due, id)
else
  local retry_at = text(now() + tonumber(ARGV[5]))
  redis.call('HSET', grant, 'retry_at', retry_at)
  redis.call('ZADD', due, retry_at, id)
  if ARGV[4] == 'unspent' and not get('uncertain') then redis.call('HDEL', grant, 'intent') end
end
settle()
return {'failed'}
