-- Pause an app, unless it is paused for longer already.
--
-- KEYS[1] pause
-- ARGV[1] duration, ms
-- ARGV[2] reason, for people

if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
end
return 1
