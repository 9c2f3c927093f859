-- Claim the right to spend the refresh token: write the lease and the intent.
--
-- ARGV[2] who claims: unique to this one claim
-- ARGV[3] length of the lease, ms
-- ARGV[4] 'due', to claim only what the plan says is due; or the time, in ms,
--         until which the access token has to be good
-- ARGV[5] how long to wait for the answer of a holder that has died, ms
-- ARGV[6] how long a token that was handed out is let live, ms
--
-- If this cannot be written, no token is spent; once it is, a crash leaves a
-- trace: an intent that no commit has cleared. Whatever stands in the way of a
-- claim also moves the plan, so that no scheduler asks again too soon.

local at, by = now(), ARGV[2]

local function never(why)
  redis.call('ZREM', due, id)
  return {why}
end

local function later(why, plan)
  redis.call('ZADD', due, text(plan), id)
  return {why, text(plan - at)}
end

if redis.call('EXISTS', grant) == 0 then return never('missing') end
if get('deleting') then return never('deleting') end
if get('gone') then return never('gone') end

if get('lease') ~= by then -- else a replay of this very claim: answer it again
  local expires = number('expires')
  if ARGV[4] == 'due' then
    local plan = redis.call('ZSCORE', due, id)
    if not plan or tonumber(plan) > at then return {'fresh'} end
    -- A renewal ends the token before it. One that is in use, and good for some
    -- time yet, is left to whoever uses it.
    local free = number('handed') + tonumber(ARGV[6])
    if free > at and expires > free + 130000 then return later('held', free) end
  elseif expires >= tonumber(ARGV[4]) then
    return {'fresh'}
  end

  local lease_until = number('lease_until')
  if lease_until > at then return later('held', lease_until) end
  -- The holder has died, or lost its way to us. If it has an answer, its journal
  -- will bring it; to spend the token now would be to spend it twice.
  lease_until = lease_until + tonumber(ARGV[5])
  if get('lease') and lease_until > at then return later('held', lease_until) end
  local retry_at = number('retry_at')
  if retry_at > at then return later('backoff', retry_at) end

  -- Whatever is asked, nothing is renewed in the first tenth of its life: who
  -- wants more of a token than Zoom gives must not make it rotate in a loop.
  local refreshed = number('refreshed')
  if ARGV[4] ~= 'due' and refreshed + (expires - refreshed) / 10 > at then return {'fresh'} end

  if get('intent') then redis.call('HSET', grant, 'uncertain', '1') end
  lease_until = text(at + tonumber(ARGV[3]))
  redis.call('HSET', grant, 'lease', by, 'lease_until', lease_until, 'intent', text(at))
  redis.call('ZADD', due, lease_until, id) -- if the holder dies, the next one takes over
end
return {'claimed', get('app'), get('refresh'), get('refresh_fingerprint'),
  get('uncertain') or '0', get('failures') or '0', text(at - number('plan'))}
