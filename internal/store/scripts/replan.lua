-- Put a grant into the due index as its record says, or take it out.

local plan = false
if redis.call('EXISTS', grant) == 1 and not get('deleting') and not get('gone') then
  plan = math.max(number('plan'), number('lease_until'), number('retry_at'))
end
if plan then
  redis.call('ZADD', due, text(plan), id)
else
  redis.call('ZREM', due, id)
end
return {'planned'}
