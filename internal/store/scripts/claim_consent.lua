-- Claim the right to spend a consent at Zoom, or learn what came of it.
--
-- ARGV[2] fingerprint of the consent
-- ARGV[3] how long the answer of a replica that has died is waited for, ms
-- ARGV[4] mark of this one claim: a replay of it is answered as made
--
-- It is also the probe that Redis can be written. A consent that Zoom has
-- answered is not presented again: a code that is may cost the grant that came of
-- it (RFC 6749, section 4.1.2).

local outcome = redis.call('HGET', consents, ARGV[2])
if get('consent') == ARGV[2] then outcome = 'stored' end
if outcome and outcome ~= 'open' then
  local since, mark = outcome:match('^spending (%d+) (%w+)$')
  if not since then return {outcome} end
  local wait = tonumber(since) + tonumber(ARGV[3]) - now()
  if mark ~= ARGV[4] and wait > 0 then return {'held', text(wait)} end
end
remember(ARGV[2], 'spending ' .. text(now()) .. ' ' .. ARGV[4])
return {'claimed'}
