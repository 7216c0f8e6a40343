-- Appends messages to the logs of rooms, except those that an earlier call, whose answer was lost, has
-- appended, and publishes each with the id of the entry before it. Several messages of one room are
-- published together, as "several", each after its length. A process of an earlier version cannot place
-- such a Pub/Sub message, so it reads the log.
-- KEYS: the number of the last entry of this process; then the log of each room
-- ARGV: the process (its origin), length and seconds and bytes that a log keeps, the end of a
--       channel's name, PUBLISH or SPUBLISH, seconds for which the number is kept, the highest
--       number of these messages, their salt (see below); then for each log how many messages it gets,
--       and for each of them its number, kind and data
-- Returns the id of the last entry, numbers and errors of those that failed, why nothing is published,
-- why logs are not trimmed
-- The floor of a log (snapshot.lua) is the id that its first entry follows. After a trim it is known only
-- if all entries older than those of this call were trimmed. Adding entries is the smaller part of what
-- Redis does for a single message. So a log is trimmed by length once a call, and by age once in each
-- second in which messages are sent; then its expiry is put off, too.
-- An id is a time in milliseconds and a count, which begins at the salt: a random number of this call. So
-- two Redis servers that both take messages give them different ids, even to one message that is sent to
-- both, and a position is known to be of the other one.
local call, pcall = redis.call, redis.pcall
local origin, length, seconds, bytes, suffix, publish, memory, highest, salt = unpack(ARGV, 1, 9)
local history, limit = tonumber(length), tonumber(bytes)
local failed, newest, unpublished, untrimmed = {}, '', false, false
local time = pcall('TIME')
local most = 65536  -- bytes that are published together
local middle, kinds = ' ' .. origin .. ' ', {text = ' text\n', bytes = ' bytes\n'}

-- Trims a log. Its error is returned at the end: if it were raised, some rooms would not get their
-- entries, although the number of the last entry says that they were appended.
local function try(...)
  local result = pcall(...)
  if type(result) == 'table' and result.err then
    untrimmed = select(1, ...) .. ': ' .. result.err
    return nil
  end
  return result
end

local function end_of(log)
  local found = pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
  if found.err then return '' end
  if found[1] then return found[1][1] end
  local info = pcall('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
  return ''
end

local function second_of(id)
  return string.sub(id, 1, 10)  -- of 13 digits, since 2001
end

local function trim(log, count, first)
  local trimmed = try('XTRIM', log, 'MAXLEN', '~', length) or 0
  if time.err or first == '' or second_of(first) ~= time[1] then
    if time.err then
      untrimmed = 'TIME: ' .. time.err
    else
      local oldest = math.max(0, (time[1] - seconds) * 1000 + time[2] / 1000)
      trimmed = trimmed + (try('XTRIM', log, 'MINID', '~', string.format('%.0f', oldest)) or 0)
    end
    try('EXPIRE', log, seconds + 1)  -- the messages of this second come as late as its end
  end
  if trimmed > 0 then
    pcall('XGROUP', 'SETID', log, 'greenws', try('XLEN', log) == count and first or '0-0')
  end
end

local function trim_bytes(log)
  local used = pcall('MEMORY', 'USAGE', log, 'SAMPLES', 20)
  if type(used) == 'number' and used > limit then
    local entries = try('XLEN', log)
    local kept = entries and math.max(1, math.floor(entries * limit / used))
    if kept and try('XTRIM', log, 'MAXLEN', kept) then
      pcall('XGROUP', 'SETID', log, 'greenws', '0-0')
    end
  end
end

-- The id of an entry after ``last``, and those of the others, which have the same time; '*' if Redis is
-- to choose all of it.
local function id_after(last)
  if time.err then return '*', '*' end
  local now = time[1] .. string.sub(1000000 + time[2], 2, 4)
  local before = string.match(last, '^%d+')
  if not before or tonumber(now) > tonumber(before) then return now .. '-' .. salt, now .. '-*' end
  local count = string.sub(last, #before + 2) + 1 + salt
  return string.format('%s-%.0f', before, count), before .. '-*'
end

-- ``at``: where in ARGV the messages begin. ``known``: the highest number that was appended before.
local function append(log, at, count, known)
  local first, last, added, large = nil, nil, 0, false
  local next_id, following
  -- What is published next: a place for its first line, then nine for each message.
  local parts, filled, size = {''}, 1, 0

  local function publish_parts()
    local text
    if filled == 10 then
      text = table.concat(parts, '', 4, filled)
    else
      parts[1] = last .. ' several ' .. origin .. ' 0 several\n'
      text = table.concat(parts, '', 1, filled)
    end
    local heard = pcall(publish, log .. suffix, text)
    if type(heard) == 'table' then unpublished = heard.err end
    filled, size = 1, 0
  end

  for i = at, at + 3 * count - 1, 3 do
    local number, kind, data = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if tonumber(number) > known then
      if not last then
        last = end_of(log)
        first = last
        next_id, following = id_after(last)
      end
      local id = pcall('XADD', log, next_id, 'o', origin, 'n', number, 'k', kind, 'd', data)
      next_id = following
      if type(id) ~= 'string' then  -- the last entry has too high an id, or Redis is older than 7
        next_id, following = '*', '*'
        id = pcall('XADD', log, '*', 'o', origin, 'n', number, 'k', kind, 'd', data)
      end
      if type(id) == 'table' then
        table.insert(failed, number)
        table.insert(failed, id.err)
      else
        if last == '' then  -- a new log, in which nothing is missing from the beginning
          pcall('XGROUP', 'CREATE', log, 'greenws', '0-1')
        end
        if filled > 1 and size + #data > most then publish_parts() end
        local ending = kinds[kind]
        local taken = #id + 1 + #last + #middle + #number + #ending + #data
        parts[filled + 1], parts[filled + 2], parts[filled + 3] = taken, '\n', id
        parts[filled + 4], parts[filled + 5], parts[filled + 6] = ' ', last, middle
        parts[filled + 7], parts[filled + 8], parts[filled + 9] = number, ending, data
        filled, size = filled + 9, size + taken
        added, last = added + 1, id
        -- Only messages larger than this can make a log of that length too large.
        if #data * history > limit then large = true end
      end
    end
  end
  if added == 0 then return end
  newest = last
  publish_parts()
  trim(log, added, first)
  if large then trim_bytes(log) end
end

-- A Redis that accepts no writes raises here, before anything was written. After this nothing may raise.
local before = call('SET', KEYS[1], highest, 'EX', memory, 'GET') or '0'
local known = tonumber(before) or 0
if known > tonumber(highest) then call('SET', KEYS[1], before, 'EX', memory) end
local at = 10
for i = 2, #KEYS do
  local count = tonumber(ARGV[at])
  append(KEYS[i], at + 1, count, known)
  at = at + 1 + 3 * count
end
return {newest, failed, unpublished, untrimmed}
