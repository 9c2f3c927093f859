-- End a claim of a consent that brought no response.
--
-- ARGV[2] fingerprint of the consent
-- ARGV[3] outcome; '' if the consent may be tried again
--
-- A consent that may be tried again is recorded too: the removal of its user then
-- also voids a response that a journal replays late.

record_outcome(ARGV[2], ARGV[3] == '' and 'open' or ARGV[3])
return {'ended'}
