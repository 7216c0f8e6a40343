-- Changes who is in a room, and publishes what has changed with the versions that it makes.
-- KEYS: the members: by id the process (its origin) and the info; under '' the version
-- ARGV: PUBLISH or SPUBLISH, the channel, seconds until the key expires, the prefix of the keys that
--       say that a process is alive (empty in a cluster, where the script must not ask); then for each
--       change its kind, the member, its value, and the change as JSON
-- Returns the members that it has left as they were, of which nothing is published
-- A "bury" is a leave by another process; it counts only if the process of the member is dead.
local here, publish, channel, seconds, alive = KEYS[1], unpack(ARGV, 1, 4)
local changes, unchanged = {}, {}
for i = 5, #ARGV, 4 do
  local kind, member, value, change = unpack(ARGV, i, i + 3)
  local changed = 0
  if kind == 'join' then
    if redis.call('HGET', here, member) ~= value then
      redis.call('HSET', here, member, value)
      changed = 1
    end
  elseif kind == 'leave' then
    changed = redis.call('HDEL', here, member)
  else
    local origin = string.match(redis.call('HGET', here, member) or '', '^%S*')
    if origin ~= '' and (alive == '' or redis.call('EXISTS', alive .. origin) == 0) then
      changed = redis.call('HDEL', here, member)
    end
  end
  table.insert(changed == 1 and changes or unchanged, changed == 1 and change or member)
end
if #changes > 0 then
  -- Versions are times in microseconds, which only grow, even if the key was lost: two masters that had
  -- the same members once must not give the same version to others.
  local now = redis.call('TIME')
  local before = tonumber(redis.call('HGET', here, '') or '')
  local last = math.max((before or 0) + #changes, now[1] * 1000000 + now[2])
  redis.call('HSET', here, '', string.format('%.0f', last))
  redis.call('EXPIRE', here, seconds)
  local first = before and before + 1 or last - #changes + 1
  local head = string.format('presence %.0f %.0f %d', first, last, before and 0 or 1)
  redis.pcall(publish, channel, head .. '\n[' .. table.concat(changes, ',') .. ']')
end
return unchanged
