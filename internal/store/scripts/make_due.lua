-- Make a grant due now, at an operator's request.
--
-- A token in the first tenth of its lifetime is kept: this bounds the rate of
-- renewals.

if redis.call('EXISTS', grant) == 0 then return {'missing'} end
if get('deleting') then return {'deleting'} end
if get('gone') then return {'gone'} end
local refreshed, expires, at = number('refreshed'), number('expires'), now()
if not get('failures') and refreshed + (expires - refreshed) / 10 > at then return {'fresh'} end
redis.call('HDEL', grant, 'retry_at')
redis.call('ZADD', due, text(at), id)
return {'due'}
