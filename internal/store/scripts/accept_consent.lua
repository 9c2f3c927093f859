-- Store Zoom's answer to a consent: a code or refresh token that a user was
-- registered with.
--
-- ARGV[2]    fingerprint of the consent
-- ARGV[3]    when the answer was asked for, ms
-- ARGV[4]    when to renew, ms
-- ARGV[5]    Zoom's id of the user, '' if Zoom has not said whose grant it is
-- ARGV[6]    Zoom's id of the user's account
-- ARGV[7..]  fields and values
--
-- A consent is spent once, so its answer is stored once, however often and late a
-- journal brings it; but not over that of a later consent, nor after the user was
-- removed.

local consent, at = ARGV[2], tonumber(ARGV[3])
local outcome = redis.call('HGET', consents, consent) or ''
if outcome == 'stored' or get('consent') == consent then return {'already'} end
if outcome ~= '' and outcome ~= 'open' and outcome:sub(1, 9) ~= 'spending ' then return {'superseded'} end
-- By Redis's clock, where it is known: the replicas' may differ.
local spending = outcome:match('^spending (%d+)')
local began = spending and tonumber(spending) or at
if number('consented') > began then return {'superseded'} end
if get('deleting') then return {'deleting'} end

remember(consent, 'stored')
redis.call('HDEL', grant, 'lease', 'lease_until', 'intent', 'uncertain', 'failures', 'retry_at',
  'gone', 'reason', 'handed', 'predecessor', 'attempts', 'ask')
redis.call('ZREM', work, id)
for i = 7, #ARGV, 2 do redis.call('HSET', grant, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', grant, 'consent', consent, 'consented', text(began), 'plan', ARGV[4])
redis.call('HSETNX', grant, 'created', text(now()))
redis.call('ZADD', due, ARGV[4], id)
if ARGV[5] == '' then
  redis.call('HSET', grant, 'ask', '1')
else
  local before, credential, was = zoom_user(), get('credential'), get('zoom_user')
  if not credential and was and was ~= ARGV[5] and get('keys') then
    -- A create for the Zoom user before may have got through.
    redis.call('HSET', grant, 'strays', (get('strays') or '') .. was .. '\0')
  end
  if credential and was ~= ARGV[5] then
    -- Another Zoom user's: from here on the old URL would give that user's tokens.
    redis.call('HSET', grant, 'former', credential)
    redis.call('HDEL', grant, 'credential', 'keys', unpack(credential_fields))
  end
  redis.call('HSET', grant, 'zoom_user', ARGV[5], 'zoom_account', ARGV[6])
  move_zoom_user(before)
end
settle()
return {'accepted'}
