-- Claim the right to spend the refresh token: write the lease and the intent.
--
-- ARGV[2] owner, unique to this claim
-- ARGV[3] length of the lease, ms
-- ARGV[4] 'due' to claim only a grant that is due; or the time, in ms, until which
--         the access token must be valid
-- ARGV[5] wait for a late response of an expired lease, ms
-- ARGV[6] hand-off guard, ms: how long a served token is not renewed
-- ARGV[7] remaining lifetime that a served token must keep for the guard, ms
--
-- If this script cannot write, no token is spent. If the owner crashes, the intent
-- remains. A refused claim also moves the due time, so that no replica repeats it
-- too early.

local at, by = now(), ARGV[2]

local function never_due(why)
  redis.call('ZREM', due, id)
  return {why}
end

local function due_later(why, plan)
  redis.call('ZADD', due, text(plan), id)
  return {why, text(plan - at)}
end

if redis.call('EXISTS', grant) == 0 then return never_due('missing') end
if get('deleting') then return never_due('deleting') end
if get('gone') then return never_due('gone') end

if get('lease') ~= by then -- otherwise the owner repeats its claim
  local expires = number('expires')
  if ARGV[4] == 'due' then
    local plan = redis.call('ZSCORE', due, id)
    if not plan or tonumber(plan) > at then return {'fresh'} end
    -- A renewal ends the previous access token, so a token that was just served
    -- is kept if it remains valid long enough.
    local free = number('served') + tonumber(ARGV[6])
    if free > at and expires > free + tonumber(ARGV[7]) then return due_later('held', free) end
  elseif expires >= tonumber(ARGV[4]) then
    return {'fresh'}
  end

  local lease_until = number('lease_until')
  if lease_until > at then return due_later('held', lease_until) end
  -- The holder has crashed or is cut off. If it has a response, its journal will
  -- replay it; spending the token now would be spending it twice.
  lease_until = lease_until + tonumber(ARGV[5])
  if get('lease') and lease_until > at then return due_later('held', lease_until) end
  local retry_at = number('retry_at')
  if retry_at > at then return due_later('backoff', retry_at) end

  -- Nothing is renewed in the first tenth of its lifetime: a caller that requests
  -- more than Zoom's lifetime must not cause a loop of renewals.
  local refreshed = number('refreshed')
  if ARGV[4] ~= 'due' and refreshed + (expires - refreshed) / 10 > at then return {'fresh'} end

  if get('intent') then redis.call('HSET', grant, 'uncertain', '1') end
  lease_until = text(at + tonumber(ARGV[3]))
  redis.call('HSET', grant, 'lease', by, 'lease_until', lease_until, 'intent', text(at))
  redis.call('ZADD', due, lease_until, id) -- if the owner crashes, the grant is due again then
end
return {'claimed', get('app'), get('refresh'), get('refresh_fingerprint'),
  get('uncertain') or '0', get('failures') or '0', text(at - number('renew_at'))}
