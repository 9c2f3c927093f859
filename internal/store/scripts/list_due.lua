-- List the grants of one shard and Zoom app that are due, the longest overdue first.
--
-- KEYS[1] due index
-- ARGV[1] maximum number of grants
--
-- Returns the ms until the next grant becomes due (-1: none), then each due ID
-- followed by its delay in ms.

local time = redis.call('TIME')
local at = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local bound = string.format('%.0f', at)
local later = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. bound, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local reply = {'-1'}
if later[2] then reply[1] = string.format('%.0f', tonumber(later[2]) - at) end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', bound, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #found, 2 do
  reply[i + 1] = found[i]
  reply[i + 2] = string.format('%.0f', at - tonumber(found[i + 1]))
end
return reply
