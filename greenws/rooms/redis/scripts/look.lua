-- A room at one moment: where its log ends, what of a process Redis has by then, who is there.
-- KEYS: the log, the members, the number of the last entry of the process
-- ARGV: what begins the key of a process that lives (empty in a cluster, where the script must not
--       ask), seconds that a log without entries lives if one is to be made, or 0
-- Returns the id of the last entry, the floor of the log, that number, the version of the members,
-- each with its value and whether its process lives, and the time
-- All that came after its floor is in a log: an entry that was deleted at once when the log began,
-- or the last one, when all were too old. It is kept as a consumer group, which is there as long as
-- the log itself. So whoever has heard nothing yet has a position, too, and sees whether that is
-- still the same log.
local log = KEYS[1]
local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
local last, floor = newest[1] and newest[1][1] or '', ''
if last == '' and not newest.err then
  local info = redis.pcall('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  if last == '' and tonumber(ARGV[2]) > 0 then
    local added = redis.pcall('XADD', log, '*', 'd', '')
    if type(added) == 'string' then
      last = added
      redis.call('XDEL', log, added)
      redis.call('XGROUP', 'CREATE', log, 'greenws', added)
      redis.call('EXPIRE', log, ARGV[2])
    end
  end
end
if last ~= '' then
  for _, group in ipairs(redis.pcall('XINFO', 'GROUPS', log)) do
    local named = false
    for i = 1, #group, 2 do
      if group[i] == 'name' then named = group[i + 1] == 'greenws' end
      if named and group[i] == 'last-delivered-id' then floor = group[i + 1] end
    end
  end
end
local here = redis.pcall('HGETALL', KEYS[2])
if here.err then here = {} end
local version, members, alive = '', {}, {}
for i = 1, #here, 2 do
  if here[i] == '' then
    version = here[i + 1]
  else
    local origin = string.match(here[i + 1], '^%S*')
    if not alive[origin] then
      alive[origin] = ARGV[1] == '' and 1 or redis.call('EXISTS', ARGV[1] .. origin)
    end
    table.insert(members, {here[i], here[i + 1], alive[origin]})
  end
end
local ours = tonumber(redis.call('GET', KEYS[3]) or '0')
return {last, floor, ours, version, members, redis.call('TIME')}
