-- Put a grant into the due index as its record says, or take it out; and into the
-- registrar's work if it is not finished.

local plan = false
if redis.call('EXISTS', grant) == 1 and not get('deleting') and not get('gone') then
  plan = math.max(number('plan'), number('lease_until'), number('retry_at'))
end
if plan then
  redis.call('ZADD', due, text(plan), id)
else
  redis.call('ZREM', due, id)
end
if redis.call('EXISTS', grant) == 1 and unfinished() then
  redis.call('ZADD', work, 'NX', text(now()), id)
else
  redis.call('ZREM', work, id)
end
return {'planned'}
