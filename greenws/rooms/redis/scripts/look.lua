-- A room at one moment: where its log ends, what of a process Redis has by then, who is there.
-- KEYS: the log, the members, the number of the last entry of the process
-- ARGV: what begins the key of a process that lives
-- Returns the id of the last entry, that number, the version of the members, each with its value
-- and whether its process lives, and the time
local newest = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local here = redis.pcall('HGETALL', KEYS[2])
if here.err then here = {} end
local version, members, alive = '', {}, {}
for i = 1, #here, 2 do
  if here[i] == '' then
    version = here[i + 1]
  else
    local origin = string.match(here[i + 1], '^%S*')
    if not alive[origin] then alive[origin] = redis.call('EXISTS', ARGV[1] .. origin) end
    table.insert(members, {here[i], here[i + 1], alive[origin]})
  end
end
local ours = tonumber(redis.call('GET', KEYS[3]) or '0')
return {newest[1] and newest[1][1] or '', ours, version, members, redis.call('TIME')}
