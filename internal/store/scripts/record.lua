-- What every script that changes a record begins with.
--
-- KEYS[1] grant   hash: the record
-- KEYS[2] due     sorted set: when each grant is to be renewed, in ms
-- KEYS[3] users   sorted set: all grants, in the order of their ids
-- KEYS[4..8]      the same, one for each state, in the order of `states`
-- KEYS[9]         sorted set: "zoom user NUL app NUL id" of every grant whose
--                 Zoom user is known
-- KEYS[10]        channel: the id of each grant that has changed
-- ARGV[1]         the grant's id
--
-- `publish` is the command that publishes: SPUBLISH on Redis Cluster, where a
-- channel lives in its shard, as its keys do; PUBLISH elsewhere.
--
-- Times are milliseconds since 1970 by Redis's clock, the one clock that all
-- replicas share. A field that says nothing is absent.

local grant, due, users, zoom_users, changed, id = KEYS[1], KEYS[2], KEYS[3], KEYS[9], KEYS[10], ARGV[1]
local states = {pending = 4, active = 5, degraded = 6, reauthorization_required = 7, deleting = 8}

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function text(number) return string.format('%.0f', number) end

local function get(field) return redis.call('HGET', grant, field) end

local function number(field) return tonumber(get(field) or '0') end

-- derive is the one place that knows how a state follows from what is recorded.
local function derive()
  local f = redis.call('HMGET', grant, 'deleting', 'gone', 'credential', 'failures')
  if f[1] then return 'deleting' end
  if f[2] then return 'reauthorization_required' end
  if not f[3] then return 'pending' end
  if f[4] then return 'degraded' end
  return 'active'
end

-- zoom_user is the grant's entry among the Zoom users, or nil.
local function zoom_user()
  local user = get('zoom_user')
  return user and user .. '\0' .. get('app') .. '\0' .. id
end

-- tell lets whoever has read the record know that it is out of date.
local function tell() redis.call(publish, changed, id) end

-- settle ends a change: it derives the state, moves the grant in the indexes,
-- counts the version and tells.
local function settle()
  local before, after = get('state'), derive()
  if before ~= after then
    if before then redis.call('ZREM', KEYS[states[before]], id) end
    redis.call('ZADD', KEYS[states[after]], 0, id)
    redis.call('ZADD', users, 0, id)
  end
  redis.call('HSET', grant, 'state', after, 'updated', text(now()))
  redis.call('HINCRBY', grant, 'version', 1)
  tell()
end
