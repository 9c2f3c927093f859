-- Remove a record and all that points at it, if it is still the one that was
-- read.
--
-- ARGV[2] version that was read
-- ARGV[3] what to answer whoever registers with the record's consent again
--
-- What is told of consents stays for a while: no journal may bring them back.

local version = get('version')
if version and version ~= ARGV[2] then return {'conflict'} end
for _, known in ipairs(redis.call('HKEYS', consents)) do remember(known, 'void') end
if not version then return {'missing'} end
local consent = get('consent')
if consent then remember(consent, ARGV[3]) end
record_change('removed', 'app', get('app'), 'user', get('user'))
redis.call('ZREM', KEYS[states[get('state')]], id)
redis.call('ZREM', users, id)
redis.call('ZREM', due, id)
redis.call('ZREM', work, id)
redis.call('HINCRBY', apps, get('app'), -1)
local known = zoom_user()
if known then redis.call('ZREM', zoom_users, known) end
redis.call('DEL', grant)
tell()
return {'removed'}
