-- End a claim of a consent's that has brought no answer.
--
-- ARGV[2] fingerprint of the consent
-- ARGV[3] '' if it may be tried again, or what came of it

if ARGV[3] == '' then
  redis.call('HDEL', consents, ARGV[2])
else
  remember(ARGV[2], ARGV[3])
end
return {'ended'}
