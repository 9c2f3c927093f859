-- Replace encrypted values by the same values under another key.
--
-- ARGV[2..]  for each field: name, value that was read, new value
--
-- A field that has changed since it was read is skipped. Nothing is published: the
-- decrypted record is the same.

for i = 2, #ARGV, 3 do
  if get(ARGV[i]) == ARGV[i + 1] then redis.call('HSET', grant, ARGV[i], ARGV[i + 2]) end
end
return {'reencrypted'}
