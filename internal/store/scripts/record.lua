-- What every script that changes a record begins with.
--
-- KEYS[1] grant   hash: the record
-- KEYS[2] due     sorted set: when each grant is to be renewed, in ms
-- KEYS[3] users   sorted set: all grants, in the order of their ids
-- KEYS[4..8]      the same, one for each state, in the order of `states`
-- ARGV[1]         the grant's id
--
-- Times are milliseconds since 1970 by Redis's clock, the one clock that all
-- replicas share. A field that says nothing is absent.

local grant, due, users, id = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
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

-- settle ends a change: it derives the state, moves the grant in the indexes
-- and counts the version.
local function settle()
  local before, after = get('state'), derive()
  if before ~= after then
    if before then redis.call('ZREM', KEYS[states[before]], id) end
    redis.call('ZADD', KEYS[states[after]], 0, id)
    redis.call('ZADD', users, 0, id)
  end
  redis.call('HSET', grant, 'state', after, 'updated', text(now()))
  redis.call('HINCRBY', grant, 'version', 1)
end
