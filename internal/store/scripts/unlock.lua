-- Let go of a lock, if it is still one's own.
--
-- KEYS[1] lock
-- ARGV[1] its mark

if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
