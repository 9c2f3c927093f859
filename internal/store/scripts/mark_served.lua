-- Note that the access token was handed out just now.
--
-- Written only while a grant is due: claim.lua leaves such a token alone for a
-- moment.

if redis.call('EXISTS', grant) == 1 then redis.call('HSET', grant, 'handed', text(now())) end
return {'noted'}
