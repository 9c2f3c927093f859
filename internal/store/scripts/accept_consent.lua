-- Store Zoom's response to a consent: to a code or a refresh token that a user was
-- registered with.
--
-- ARGV[2]    fingerprint of the consent
-- ARGV[3]    when the request was sent, ms
-- ARGV[4]    renewal time, ms
-- ARGV[5]    Zoom user, '' if unknown
-- ARGV[6]    Zoom account
-- ARGV[7..]  fields and values
--
-- A consent has one response, so a replay from a journal changes nothing. A response
-- never replaces that of a later consent, and never restores a removed user.

local consent, at = ARGV[2], tonumber(ARGV[3])
local outcome = redis.call('HGET', consents, consent) or ''
if outcome == 'stored' or get('consent') == consent then return {'already'} end
if outcome ~= '' and outcome ~= 'open' and outcome:sub(1, 9) ~= 'spending ' then return {'superseded'} end
-- Prefer the time by Redis's clock: the clocks of replicas differ.
local spending = outcome:match('^spending (%d+)')
local began = spending and tonumber(spending) or at
if number('consented') > began then return {'superseded'} end
if get('deleting') then return {'deleting'} end

record_outcome(consent, 'stored')
redis.call('HDEL', grant, 'lease', 'lease_until', 'intent', 'uncertain', 'failures', 'retry_at',
  'gone', 'reason', 'served', 'predecessor', 'attempts', 'owner_unverified')
redis.call('ZREM', work, id)
for i = 7, #ARGV, 2 do redis.call('HSET', grant, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', grant, 'consent', consent, 'consented', text(began), 'renew_at', ARGV[4])
redis.call('HSETNX', grant, 'created', text(now()))
redis.call('ZADD', due, ARGV[4], id)
if ARGV[5] == '' then
  redis.call('HSET', grant, 'owner_unverified', '1')
else
  local before, credential, was = zoom_user(), get('credential'), get('zoom_user')
  if not credential and was and was ~= ARGV[5] and get('secrets') then
    -- A create for the previous Zoom user may have succeeded.
    redis.call('HSET', grant, 'unrecorded_zoom_users', (get('unrecorded_zoom_users') or '') .. was .. '\0')
  end
  if credential and was ~= ARGV[5] then
    -- Another Zoom user: the old URL would serve that user's tokens from now on.
    redis.call('HSET', grant, 'replaced_credential', credential)
    redis.call('HDEL', grant, 'credential', 'secrets', unpack(credential_fields))
  end
  redis.call('HSET', grant, 'zoom_user', ARGV[5], 'zoom_account', ARGV[6])
  move_zoom_user(before)
end
finish_change()
return {'accepted'}
