-- What is due in one shard, soonest first, and how long until the next.
--
-- KEYS[1] due
-- ARGV[1] how many at the most
--
-- Answers the ms until the next grant that is not due yet (-1: there is none),
-- then the ids that are due.

local time = redis.call('TIME')
local at = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[1])
local later = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local wait = '-1'
if later[2] then wait = string.format('%.0f', tonumber(later[2]) - tonumber(at)) end
table.insert(found, 1, wait)
return found
