-- Remove a record and all that points at it, if it is still the one that was
-- read.
--
-- ARGV[2] version that was read

local version = get('version')
if not version then return {'missing'} end
if version ~= ARGV[2] then return {'conflict'} end
redis.call('ZREM', KEYS[states[get('state')]], id)
redis.call('ZREM', users, id)
redis.call('ZREM', due, id)
local known = zoom_user()
if known then redis.call('ZREM', zoom_users, known) end
redis.call('DEL', grant)
tell()
return {'removed'}
