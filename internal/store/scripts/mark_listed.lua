-- Record that Recall's list contains the grant's credential.

if redis.call('EXISTS', grant) == 1 then redis.call('HSET', grant, 'listed', text(now())) end
return {'marked'}
