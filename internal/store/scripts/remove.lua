-- Remove a record and its index entries, if it still has the version that was read.
--
-- ARGV[2] version that was read
-- ARGV[3] outcome to return for the record's consent from now on
--
-- The outcomes of the user's consents remain, so that no journal restores them.

local version = get('version')
if version and version ~= ARGV[2] then return {'conflict'} end
for _, known in ipairs(redis.call('HKEYS', consents)) do record_outcome(known, 'void') end
if not version then return {'missing'} end
local consent = get('consent')
if consent then record_outcome(consent, ARGV[3]) end
record_change('removed', 'app', get('app'), 'user', get('user'))
redis.call('ZREM', KEYS[states[get('state')]], id)
redis.call('ZREM', users, id)
redis.call('ZREM', due, id)
redis.call('ZREM', work, id)
redis.call('HINCRBY', apps, get('app'), -1)
local known = zoom_user()
if known then redis.call('ZREM', zoom_users, known) end
redis.call('DEL', grant)
publish_change()
return {'removed'}
