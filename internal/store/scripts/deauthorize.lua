-- Mark a grant for removal because the user has removed the app at Zoom, unless
-- the user has consented again since.
--
-- ARGV[2] when the user removed it, ms
-- ARGV[3] reason, for people

if redis.call('EXISTS', grant) == 0 then return {'missing'} end
if get('deleting') then return {'deleting'} end
if number('consented') > tonumber(ARGV[2]) then return {'fresh'} end
redis.call('HSET', grant, 'deleting', '1', 'reason', ARGV[3])
redis.call('ZREM', due, id)
settle()
return {'marked'}
