-- Prelude of every script that changes a record.
--
-- KEYS[1] grant   hash: the record
-- KEYS[2] due     sorted set of the grant's Zoom app: due time of each grant, in ms
-- KEYS[3] users   sorted set: all grants, in the order of their ids
-- KEYS[4..8]      the same, one for each state, in the order of `states`
-- KEYS[9]         sorted set: "zoom user NUL app NUL id" of every grant whose
--                 Zoom user is known
-- KEYS[10]        channel: the ID of each grant that has changed
-- KEYS[11] work   sorted set: time of the registrar's next attempt at each incomplete
--                 grant, in ms
-- KEYS[12]        stream: changes that are visible in the API
-- KEYS[13]        hash: outcome of each code or refresh token that this user was
--                 registered with, by fingerprint
-- KEYS[14]        hash: number of grants of each Zoom app in this shard
-- ARGV[1]         the grant's id
--
-- The store defines `publish`, the command that publishes: SPUBLISH on Redis Cluster,
-- where a channel belongs to its shard; PUBLISH elsewhere. It defines `user_fields`
-- too, the fields that the API shows; see fields.go.
--
-- Times are milliseconds since 1970 by Redis's clock, the one clock that all
-- replicas share. An absent field means empty, zero or false.

local grant, due, users, zoom_users, changed, id = KEYS[1], KEYS[2], KEYS[3], KEYS[9], KEYS[10], ARGV[1]
local work, changes, consents, apps = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local states = {pending = 4, active = 5, degraded = 6, reauthorization_required = 7, deleting = 8}

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function text(number) return string.format('%.0f', number) end

local function get(field) return redis.call('HGET', grant, field) end

local function number(field) return tonumber(get(field) or '0') end

-- derive_state returns the state that follows from the record.
local function derive_state()
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

-- move_zoom_user updates the index of Zoom users; before is the previous entry.
local function move_zoom_user(before)
  local after = zoom_user()
  if before == after then return end
  if before then redis.call('ZREM', zoom_users, before) end
  if after then redis.call('ZADD', zoom_users, 0, after) end
end

-- record_outcome stores the outcome of a consent for a day (grant.ConsentMemory).
local function record_outcome(consent, outcome)
  redis.call('HSET', consents, consent, outcome)
  redis.call('PEXPIRE', consents, 86400000)
end

-- publish_change invalidates cached copies of the record.
local function publish_change() redis.call(publish, changed, id) end

-- stream_length is the approximate number of changes in the stream of a shard.
local stream_length = 4096

-- record_change appends to the stream. Each entry names its predecessor, so a reader
-- detects that entries were dropped.
local function record_change(state, ...)
  local last = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
  redis.call('XADD', changes, 'MAXLEN', '~', stream_length, '*',
    'id', id, 'state', state, 'after', last and last[1] or '0-0', ...)
end

-- is_incomplete reports whether the registrar has work left.
local function is_incomplete()
  local f = redis.call('HMGET', grant, 'deleting', 'replaced_credential', 'gone', 'credential', 'owner_unverified')
  if f[1] or f[2] then return true end
  if f[3] then return false end -- only the user can fix it
  return not f[4] or f[5]
end

-- first_try_delay is how long, in ms, other replicas leave an incomplete grant to
-- the one that changed it.
local first_try_delay = 2000

-- finish_change ends a change: it derives the state, updates the indexes, increments
-- the version and publishes.
local function finish_change()
  local before, after = get('state'), derive_state()
  if before ~= after then
    if before then
      redis.call('ZREM', KEYS[states[before]], id)
    else
      redis.call('HINCRBY', apps, get('app'), 1)
    end
    redis.call('ZADD', KEYS[states[after]], 0, id)
    redis.call('ZADD', users, 0, id)
  end
  redis.call('HSET', grant, 'state', after, 'updated', text(now()))
  redis.call('HINCRBY', grant, 'version', 1)
  if is_incomplete() then
    redis.call('ZADD', work, 'NX', text(now() + first_try_delay), id)
  elseif redis.call('ZREM', work, id) == 1 then
    redis.call('HDEL', grant, 'attempts')
  end
  -- A renewal changes times only, which is not a visible change. Empty fields are
  -- left out, so that a new field does not mark old records as changed.
  local values, parts = redis.call('HMGET', grant, unpack(user_fields)), {}
  for i, field in ipairs(user_fields) do
    if values[i] and values[i] ~= '' then parts[#parts + 1] = field .. '=' .. values[i] end
  end
  local visible = redis.sha1hex(table.concat(parts, '\0'))
  if get('visible_hash') ~= visible then
    redis.call('HSET', grant, 'visible_hash', visible)
    record_change(after)
  end
  publish_change()
end
