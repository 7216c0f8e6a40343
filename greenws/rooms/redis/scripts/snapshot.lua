-- A snapshot of a room: the end of its log, the number of the last entry that a process has in
-- Redis, and the members.
-- KEYS: the log, the members, the number of the last entry of the process
-- ARGV: the prefix of the keys that say that a process is alive (empty in a cluster, where the
--       script must not read them); seconds after which a new log without entries expires, or 0 to
--       make none
-- Returns the id of the last entry, the floor of the log, that number, the version of the members,
-- each member with its value and whether its process is alive, and the time.
-- The floor is an id after which the log has everything: that of an entry that was deleted at once
-- when the log began, or of the last entry when all were trimmed. A consumer group holds it, which
-- exists as long as the log. So a client that has received nothing yet has a position, too, and can
-- tell whether it is still the same log.
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
