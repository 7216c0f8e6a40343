-- Returns the newest entries of a log, the newest first, without the fields that only processes need,
-- because redis-py is slow at reading an answer with many parts.
-- KEYS: the log
-- ARGV: the id to begin at, or '(' and the id before which to begin; how many at most
-- Returns id, kind and data of each entry that a process has appended; id and fields, together, of
-- other entries
local answer, filled = {}, 0
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2])) do
  local fields = entry[2]
  if #fields == 8 and fields[1] == 'o' and fields[3] == 'n' and fields[5] == 'k' and fields[7] == 'd'
      and not string.find(fields[2], '[\128-\255]')
      and #fields[4] < 20 and string.find(fields[4], '^%d+$') then
    answer[filled + 1], answer[filled + 2], answer[filled + 3] = entry[1], fields[6], fields[8]
    filled = filled + 3
  else
    filled = filled + 1
    answer[filled] = entry
  end
end
return answer
