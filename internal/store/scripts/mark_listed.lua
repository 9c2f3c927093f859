-- Note that Recall has the grant's credential.

if redis.call('EXISTS', grant) == 1 then redis.call('HSET', grant, 'seen', text(now())) end
return {'noted'}
