-- Claim the right to spend a consent at Zoom, or return its outcome.
--
-- ARGV[2] fingerprint of the consent
-- ARGV[3] wait for a late response of another replica, ms
-- ARGV[4] id of this claim: a repeated call returns 'claimed' again
--
-- The write also proves that Redis is writable. A consent with a response is not
-- presented again: Zoom may revoke the grant of a code that is used twice
-- (RFC 6749, section 4.1.2).

local outcome = redis.call('HGET', consents, ARGV[2])
if get('consent') == ARGV[2] then outcome = 'stored' end
if outcome and outcome ~= 'open' then
  local since, mark = outcome:match('^spending (%d+) (%w+)$')
  if not since then return {outcome} end
  local wait = tonumber(since) + tonumber(ARGV[3]) - now()
  if mark ~= ARGV[4] and wait > 0 then return {'held', text(wait)} end
end
record_outcome(ARGV[2], 'spending ' .. text(now()) .. ' ' .. ARGV[4])
return {'claimed'}
