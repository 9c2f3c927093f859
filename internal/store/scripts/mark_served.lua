-- Record that the access token was served.
--
-- Called only while a grant is due: claim.lua does not renew such a token for a
-- moment (hand-off guard).

if redis.call('EXISTS', grant) == 1 then redis.call('HSET', grant, 'served', text(now())) end
return {'marked'}
