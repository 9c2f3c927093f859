-- Note that a step of the registrar's has failed, and when to try again.
--
-- ARGV[2] in how many ms

if redis.call('EXISTS', grant) == 0 then return {'missing'} end
redis.call('HINCRBY', grant, 'attempts', 1)
redis.call('ZADD', work, 'XX', text(now() + tonumber(ARGV[2])), id)
return {'postponed'}
