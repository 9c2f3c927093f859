-- End a claim of a consent's that has brought no answer.
--
-- ARGV[2] fingerprint of the consent
-- ARGV[3] '' if it may be tried again, or what came of it

-- A consent that may be tried again is remembered too, so that the removal of its
-- user also concerns an answer that a journal brings late.

remember(ARGV[2], ARGV[3] == '' and 'open' or ARGV[3])
return {'ended'}
