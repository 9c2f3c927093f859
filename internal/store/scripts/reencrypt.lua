-- Put values into a record that say the same, sealed by another key.
--
-- ARGV[2..]  for each field: its name, its value as it was read, and the value to
--            put in its place
--
-- A field that has changed since is left alone, and nobody is told: the record
-- says what it said.

for i = 2, #ARGV, 3 do
  if get(ARGV[i]) == ARGV[i + 1] then redis.call('HSET', grant, ARGV[i], ARGV[i + 2]) end
end
return {'resealed'}
