-- Rebuild a grant's entries in the due index and the work index from its record.

local plan = false
if redis.call('EXISTS', grant) == 1 and not get('deleting') and not get('gone') then
  plan = math.max(number('renew_at'), number('lease_until'), number('retry_at'))
end
if plan then
  redis.call('ZADD', due, text(plan), id)
else
  redis.call('ZREM', due, id)
end
if redis.call('EXISTS', grant) == 1 and is_incomplete() then
  redis.call('ZADD', work, 'NX', text(now()), id)
else
  redis.call('ZREM', work, id)
end
return {'indexed'}
