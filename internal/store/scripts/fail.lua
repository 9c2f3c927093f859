-- Record a failed refresh and release the lease.
--
-- ARGV[2] owner of the claim
-- ARGV[3] fingerprint of the refresh token
-- ARGV[4] 'unspent' (Zoom did not accept the token), 'uncertain' (unknown), 'gone'
--         (the user must authorize again), or 'released' (unrelated to the grant:
--         as if it had not been claimed)
-- ARGV[5] wait before the next attempt, ms
-- ARGV[6] reason, for people
--
-- It requires the lease and the stored token: a failure never overwrites a success.

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
finish_change()
return {'failed'}
