-- Extend a lock if its value is still the caller's.
--
-- KEYS[1] lock
-- ARGV[1] the caller's value
-- ARGV[2] new time to live, ms

if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
