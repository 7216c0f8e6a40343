-- Appends messages to the logs of rooms, but for those that were appended before and whose answer
-- was lost, and publishes each with the id of the entry before it; those of one room together, as
-- "several", each after its length. To a process that knows only single messages, that is one which
-- it cannot place, so that it reads the log.
-- KEYS: the number of the last entry of this process; then for each message the log of its room
-- ARGV: the process (its origin), length and seconds and bytes that a log keeps, what ends a
--       channel's name, PUBLISH or SPUBLISH, seconds for which the number is kept; then for each
--       message its number, kind and data
-- Returns the id of the last entry, numbers and errors of those that failed, why nothing is published
-- The floor of a log (look.lua) is where its first entry goes on. When entries are trimmed, that is
-- known only if all before those of this call are. A log is trimmed once for all that this call
-- appends to it: most of what Redis does for a message would be that.
local origin, length, seconds, bytes, suffix, publish, memory = unpack(ARGV, 1, 7)
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local time = redis.call('TIME')
local oldest = string.format('%.0f', math.max(0, (time[1] - seconds) * 1000 + time[2] / 1000))
local failed, ends, newest_added, unpublished, large = {}, {}, '', false, {}
local waiting, sizes = {}, {}
local first_ends, counts = {}, {}  -- where a log ended before this call, and what that appended
local most = 65536  -- bytes that are published together

local function publish_waiting(log)
  local texts = waiting[log]
  local text = texts[1]
  if #texts > 1 then
    for i = 1, #texts do texts[i] = #texts[i] .. '\n' .. texts[i] end
    text = ends[log] .. ' several ' .. origin .. ' 0 several\n' .. table.concat(texts)
  end
  local heard = redis.pcall(publish, log .. suffix, text)
  if type(heard) == 'table' then unpublished = heard.err end
  waiting[log] = nil
end

local function end_of(log)
  local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
  if newest.err then return '' end
  if newest[1] then return newest[1][1] end
  local info = redis.pcall('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
  return ''
end

-- A Redis that takes no writes says so here, where nothing is written yet.
redis.call('SET', KEYS[1], string.format('%.0f', last), 'EX', memory)
for i = 2, #KEYS do
  local log = KEYS[i]
  local number, kind, data = unpack(ARGV, 3 * i + 2, 3 * i + 4)
  if tonumber(number) > last then
    if not ends[log] then ends[log] = end_of(log) end
    local added = redis.pcall('XADD', log, '*', 'o', origin, 'n', number, 'k', kind, 'd', data)
    if type(added) == 'table' and added.err then
      table.insert(failed, number)
      table.insert(failed, added.err)
    else
      if ends[log] == '' then  -- a new log, in which nothing is missing from the beginning
        redis.pcall('XGROUP', 'CREATE', log, 'greenws', '0-1')
      end
      if not counts[log] then counts[log], first_ends[log] = 0, ends[log] end
      counts[log] = counts[log] + 1
      local head = table.concat({added, ends[log], origin, number, kind}, ' ')
      if waiting[log] and sizes[log] + #data > most then publish_waiting(log) end
      if not waiting[log] then waiting[log], sizes[log] = {}, 0 end
      table.insert(waiting[log], head .. '\n' .. data)
      sizes[log] = sizes[log] + #head + #data
      ends[log], newest_added = added, added
      -- Only messages larger than this can make a log of that length too large.
      if #data * length > tonumber(bytes) then large[log] = true end
    end
    last = tonumber(number)
  end
end
for log, count in pairs(counts) do
  if waiting[log] then publish_waiting(log) end
  local trimmed = redis.call('XTRIM', log, 'MAXLEN', '~', length)
    + redis.call('XTRIM', log, 'MINID', '~', oldest)
  if trimmed > 0 then
    local floor = redis.call('XLEN', log) == count and first_ends[log] or '0-0'
    redis.pcall('XGROUP', 'SETID', log, 'greenws', floor)
  end
  redis.call('EXPIRE', log, seconds)
end
for log in pairs(large) do
  local used = redis.pcall('MEMORY', 'USAGE', log, 'SAMPLES', 20)
  if type(used) == 'number' and used > tonumber(bytes) then
    local kept = math.floor(redis.call('XLEN', log) * bytes / used)
    redis.call('XTRIM', log, 'MAXLEN', math.max(1, kept))
    redis.pcall('XGROUP', 'SETID', log, 'greenws', '0-0')
  end
end
redis.call('SET', KEYS[1], string.format('%.0f', last), 'EX', memory)
return {newest_added, failed, unpublished}
