-- What every script that changes a record begins with.
--
-- KEYS[1] grant   hash: the record
-- KEYS[2] due     sorted set of the grant's Zoom app: due time of each grant, in ms
-- KEYS[3] users   sorted set: all grants, in the order of their ids
-- KEYS[4..8]      the same, one for each state, in the order of `states`
-- KEYS[9]         sorted set: "zoom user NUL app NUL id" of every grant whose
--                 Zoom user is known
-- KEYS[10]        channel: the id of each grant that has changed
-- KEYS[11] work   sorted set: when the registrar is to go on with each grant that
--                 is not finished, in ms
-- KEYS[12]        stream: changes that users of the API can see
-- KEYS[13]        hash: what came of each code or refresh token that this user was
--                 registered with lately, by its fingerprint
-- KEYS[14]        hash: how many grants each Zoom app has in this shard
-- ARGV[1]         the grant's id
--
-- `publish` is the command that publishes: SPUBLISH on Redis Cluster, where a
-- channel lives in its shard, as its keys do; PUBLISH elsewhere.
--
-- Times are milliseconds since 1970 by Redis's clock, the one clock that all
-- replicas share. A field that says nothing is absent.

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

-- move_zoom_user puts the grant where it belongs among the Zoom users; before is
-- where it was.
local function move_zoom_user(before)
  local after = zoom_user()
  if before == after then return end
  if before then redis.call('ZREM', zoom_users, before) end
  if after then redis.call('ZADD', zoom_users, 0, after) end
end

-- remember keeps what came of a consent for a day: for as long as somebody may
-- ask again, or a journal bring its answer late.
local function remember(consent, outcome)
  redis.call('HSET', consents, consent, outcome)
  redis.call('PEXPIRE', consents, 86400000)
end

-- tell lets whoever has read the record know that it is out of date.
local function tell() redis.call(publish, changed, id) end

-- told_changes is how many changes the stream of a shard holds, or a few more.
local told_changes = 4096

-- record_change appends to the stream of changes. Each entry names the one before
-- it, so that a reader sees when entries that it has not read were dropped.
local function record_change(state, ...)
  local last = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
  redis.call('XADD', changes, 'MAXLEN', '~', told_changes, '*',
    'id', id, 'state', state, 'after', last and last[1] or '0-0', ...)
end

-- unfinished says whether there is something left for the registrar to do.
local function unfinished()
  local f = redis.call('HMGET', grant, 'deleting', 'former', 'gone', 'credential', 'ask')
  if f[1] or f[2] then return true end
  if f[3] then return false end -- only the user can mend it
  return not f[4] or f[5]
end

-- take_up is how long, in ms, whoever has changed a grant has the first right to
-- go on with it.
local take_up = 2000

-- settle ends a change: it derives the state, moves the grant in the indexes,
-- counts the version and tells.
local function settle()
  local before, after = get('state'), derive()
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
  if unfinished() then
    redis.call('ZADD', work, 'NX', text(now() + take_up), id)
  elseif redis.call('ZREM', work, id) == 1 then
    redis.call('HDEL', grant, 'attempts')
  end
  -- user_fields come from fields.go. A renewal changes times only, so it publishes no
  -- change of the user.
  local visible = redis.call('HMGET', grant, unpack(user_fields))
  for i = 1, #user_fields do visible[i] = visible[i] or '' end
  visible = redis.sha1hex(table.concat(visible, '\0'))
  if get('told') ~= visible then
    redis.call('HSET', grant, 'told', visible)
    record_change(after)
  end
  tell()
end
