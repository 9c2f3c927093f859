-- Mark a grant for removal because the user removed the app at Zoom, unless the
-- user has consented again since.
--
-- ARGV[2] time of the removal at Zoom, ms
-- ARGV[3] reason, for people

if redis.call('EXISTS', grant) == 0 then return {'missing'} end
if get('deleting') then return {'deleting'} end
if number('consented') > tonumber(ARGV[2]) then return {'fresh'} end
redis.call('HSET', grant, 'deleting', '1', 'reason', ARGV[3])
redis.call('ZREM', due, id)
finish_change()
return {'marked'}
