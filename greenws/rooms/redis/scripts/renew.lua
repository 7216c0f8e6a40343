-- Keeps the log of an open room from expiring while nothing is sent. Old messages are trimmed all the
-- same, and the last one becomes the floor (snapshot.lua), which the members have reached.
-- KEYS: the log
-- ARGV: seconds that a log keeps
local log, seconds = KEYS[1], tonumber(ARGV[1])
local time = redis.call('TIME')
local oldest = (time[1] - seconds) * 1000 + time[2] / 1000
local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
if newest.err then return 0 end
local last = newest[1] and newest[1][1]
if last and tonumber(string.match(last, '^%d+')) < oldest then
  redis.call('XTRIM', log, 'MAXLEN', 0)
  redis.pcall('XGROUP', 'CREATE', log, 'greenws', '0-0')
  redis.pcall('XGROUP', 'SETID', log, 'greenws', last)
end
return redis.call('EXPIRE', log, seconds)
