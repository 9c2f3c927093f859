-- Release a lock if its value is still the caller's.
--
-- KEYS[1] lock
-- ARGV[1] the caller's value

if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
