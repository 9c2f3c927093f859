-- Record a failed attempt of the registrar, and the time of the next one.
--
-- ARGV[2] wait before the next attempt, ms

if redis.call('EXISTS', grant) == 0 then return {'missing'} end
redis.call('HINCRBY', grant, 'attempts', 1)
redis.call('ZADD', work, 'XX', text(now() + tonumber(ARGV[2])), id)
return {'postponed'}
