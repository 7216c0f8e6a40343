"""``RedisBroker``: the log of a room is a Redis Stream, read by every process with members of it.

Two connections: one for commands, and one that is subscribed to the rooms that are open. There
Redis publishes each entry as it is appended, with the place of the one before. Whoever has missed
some, or may have, reads on in the log from the last place it saw; so nothing depends on what is
published. Redis itself drops what a sender repeats, so each entry is in the log once.

While Redis is away a process hands what it sends to its own members at once, ahead of the log,
keeps it, and appends it when Redis is back.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import secrets
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import gevent
import redis
import redis.connection
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.monkey import is_module_patched
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...config import check_range, check_seconds
from ...hub.switching import thread_id
from .. import turns
from ..broker import BEGINNING, JOIN, LEAVE, Broker, BrokerUnavailable, Entry, Message
from .entries import BURIAL, BYTES, TEXT, LogEntry, parse
from .positions import Position, order
from .replay import LogReplay, Snapshot

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["RedisBroker"]

_T = TypeVar("_T")

_BATCH = 500  # entries that one command appends, or one read takes from a room, at most
_BATCH_BYTES = 2**20  # bytes that one command appends, or a little more
_ROOMS = 100  # whose logs are read with one command
_MARGIN = 10_000  # milliseconds by which what is known of Redis's clock may be wrong
_LOOK = 0.005  # seconds between two looks of one who waits until all is in the log
_FUTURE = 60_000  # milliseconds by which a position may be ahead of Redis's clock
_PING = 1.0  # seconds between two looks whether the connection works
_FIRST_DELAY, _LONGEST_DELAY = 0.02, 1.0  # seconds between two attempts to reach Redis
_BEHIND = 2**64 - 1  # the count in the place behind all entries of a millisecond; never an entry's
_PAGE = 100  # entries of a log that a member which comes back is sent at once
_FIRST_PAGE = 10  # the same, before it is known how large they are
_PAGE_BYTES = 2**18  # bytes of such a page, or a little more
_ERRORS = (redis.RedisError, OSError)

# Appends entries, but for those that were appended before and whose answer was lost.
_APPEND_SCRIPT = """
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local oldest = math.max(0, redis.call('TIME')[1] - ARGV[3]) * 1000
local failed, ends, newest_added, unheard = {}, {}, '', false
-- A Redis that takes no writes says so here, where nothing is written yet.
redis.call('SET', KEYS[1], string.format('%.0f', last), 'EX', 86400)
for i = 1, (#KEYS - 1) / 2 do
  local log, here = KEYS[2 * i], KEYS[2 * i + 1]
  local number, kind, data, member = unpack(ARGV, 4 * i + 3, 4 * i + 6)
  if tonumber(number) > last then
    local news = 1
    if kind == 'join' then
      redis.pcall('HSET', here, member, ARGV[1] .. ' ' .. data)
      redis.pcall('EXPIRE', here, ARGV[4])
    elseif kind == 'leave' then
      redis.pcall('HDEL', here, member)
    elseif kind == 'burial' then -- by whoever is first, unless that process is back
      local held = redis.pcall('HGET', here, member)
      local origin = type(held) == 'string' and string.match(held, '^%S*')
      kind, news = 'leave', 0
      if origin and redis.call('EXISTS', ARGV[6] .. origin) == 0 then
        news = redis.pcall('HDEL', here, member)
      end
    end
    if news == 1 then
      if not ends[log] then
        local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
        ends[log] = newest[1] and newest[1][1] or ''
      end
      local added = redis.pcall('XADD', log, 'MAXLEN', '~', ARGV[2], '*',
        'o', ARGV[1], 'n', number, 'k', kind, 'd', data, 'm', member)
      if type(added) == 'table' and added.err then
        table.insert(failed, number)
        table.insert(failed, added.err)
      else
        redis.call('XTRIM', log, 'MINID', '~', string.format('%.0f', oldest))
        redis.call('EXPIRE', log, ARGV[3])
        local head = {added, ends[log], ARGV[1], number, kind, member}
        local text = table.concat(head, ' ') .. '\\n' .. data
        local heard = redis.pcall('PUBLISH', log .. ARGV[5], text)
        if type(heard) == 'table' then unheard = heard.err end
        ends[log], newest_added = added, added
      end
    end
    last = tonumber(number)
  end
end
redis.call('SET', KEYS[1], string.format('%.0f', last), 'EX', 86400)
return {newest_added, failed, unheard}
"""

# Where a log ends, what of ours Redis has by then, who is there, and whether their processes live.
_LOOK_SCRIPT = """
local newest = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local here = redis.pcall('HGETALL', KEYS[2])
if here.err then here = {} end
local alive, live = {}, {}
for i = 2, #here, 2 do
  local origin = string.match(here[i], '^%S*')
  if not alive[origin] then alive[origin] = redis.call('EXISTS', ARGV[1] .. origin) end
  live[i / 2] = alive[origin]
end
local ours = tonumber(redis.call('GET', KEYS[3]) or '0')
return {newest[1] and newest[1][1] or '', ours, here, live, redis.call('TIME')}
"""

# Options of a connection that a URL cannot change.
_OURS = {"decode_responses", "health_check_interval", "max_connections", "protocol"}
_OURS |= {"socket_timeout", "socket_connect_timeout", "retry_on_timeout", "retry_on_error"}

_logger = logging.getLogger("greenws.brokers.redis")


class _Other(NamedTuple):
    """A member in another process."""

    member: str
    origin: str
    info: dict[str, Any]
    is_alive: bool


class _Look(NamedTuple):
    """What Redis knows of a room at one moment."""

    place: str
    """Of the last entry of its log."""
    ours: int
    """The number of the last of all entries of this process that stand in a log by then."""
    members: list[_Other]


class _Channel:
    """A room that is open in this process."""

    def __init__(self) -> None:
        self.openers = 1
        self.opened = Event()
        self.place = ""  # of the last entry that was delivered
        self.sent: deque[LogEntry] = deque()  # ours, not delivered from the log yet
        self.unread_since = time.time()  # at the earliest, when there are some
        self.ahead = 0  # number of the last of them that was delivered ahead of it
        self.members: dict[str, str] = {}  # ours and their info
        self.elsewhere: dict[str, _Other] = {}
        self.is_stale = False  # who is there is not known
        self.left: set[str] = set()  # while that is being asked
        self.is_broken = False  # the key holds something that is no log

    def position(self, origin: str) -> str:
        if not self.ahead:
            return self.place
        return str(Position(self.place, {origin: self.ahead}))


class RedisBroker(Broker):
    """Carries rooms between processes and machines, through one Redis (6.2 or later).

    ``url`` as redis-py takes it. A room's log keeps ``history`` entries or some more, none for much
    longer than ``max_age`` seconds, and expires when it was idle for that long. A process that is
    further behind loses messages, and logs that. ``max_pending``: messages
    kept while Redis is away. ``timeout``: seconds after which a Redis that does not answer is away,
    and for which a member that comes back waits for it. ``presence_timeout``: seconds after which
    the members of a process that died are gone.

    Redis must keep its data when it restarts (``appendonly yes``), or what somebody has not read by
    then is lost. Redis before 7.0 does not tell whether a log was ever trimmed: a member that comes
    back to one in which it had heard nothing is not called complete there, though it may be. All
    names of keys and channels begin with ``prefix``, for an ACL.

    Raises:
        RuntimeError: redis-py would block the hub.
        TypeError, ValueError: ``url`` is none that redis-py takes, or an option no such number.
    """

    origin = ""
    """Names this process among those that use the same Redis, once it has started."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "greenws:",
        history: int = 10_000,
        max_age: float = 3600.0,
        max_pending: int = 10_000,
        timeout: float = 5.0,
        presence_timeout: float = 15.0,
    ) -> None:
        check_range("history", history, 1, sys.maxsize)
        check_range("max_pending", max_pending, 1, sys.maxsize)
        check_seconds("max_age", max_age)
        check_seconds("timeout", timeout)
        check_seconds("presence_timeout", presence_timeout)
        _check_sockets(url)
        self._url = _stripped(url)
        try:
            redis.ConnectionPool.from_url(self._url).make_connection()  # connects to nothing yet
        except TypeError as error:
            raise ValueError(f"url has an option that redis-py does not know: {error}") from None
        self._prefix = prefix
        self._history = history
        self._max_age = max(1, int(max_age))
        self._max_pending = max_pending
        self._timeout = timeout
        self._presence_timeout = presence_timeout
        self._presence_age = max(self._max_age, int(4 * presence_timeout))
        self._is_started = False  # in this process
        self._is_stopped = False
        self._greenlets: list[gevent.Greenlet[[Callable[[], None]], None]] = []
        self._settle()

    @property
    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._listener is None else self._listener.lock

    def _settle(self) -> None:
        """Whose greenlets do the work: those of the thread that made the broker, or joins rooms."""
        self._hub = gevent.get_hub()
        self._thread = thread_id()

    def _start(self) -> None:
        """Begins anew in each process."""
        if self._is_stopped:
            raise BrokerUnavailable("these rooms were closed")
        if self._is_started:
            return
        with self._lock:  # another thread may be at it
            if not self._is_started:
                self._begin()
                self._is_started = True
                _started.add(self)
                self._in_hub(self._spawn)

    def _begin(self) -> None:
        self.origin = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._channels: dict[str, _Channel] = {}
        self._unsent: deque[tuple[str, LogEntry]] = deque()
        self._waiting = 0  # messages among them
        self._writable = self._readable = True  # until the contrary is known
        self._lost_at = time.time()  # the last time
        self._last_added = "0-0"  # the place of our last entry in any log, as far as is known
        self._is_unheard = False  # Redis does not publish
        self._wake = Event()
        self._changed: set[str] = set()  # rooms that were opened or closed
        self._rooms_changed = Event()
        self._next_beat = 0.0
        self._next_renewal = 0.0
        self._has_beaten = False
        self._next_burial = 0.0
        self._commands = self._connect(self._timeout)
        self._turn = Semaphore()  # whose turn it is to use that connection
        self._queue = Semaphore()  # those who are in no hurry
        self._news: Any = None  # the connection to what is published, while it works
        self._heard_at = time.monotonic()  # all that was published before
        self._is_tuned = False  # it has worked, and all that was missed before was read
        # Names of what is published are the same in all databases of a Redis.
        database = self._commands.connection_pool.connection_kwargs.get("db") or 0
        self._suffix = f"@{database}"
        self._skew = 0  # milliseconds by which Redis's clock is ahead of this machine's

    def _spawn(self) -> None:
        loops = (self._write, self._subscribe, self._read)
        self._greenlets = [gevent.spawn(self._run, loop) for loop in loops]

    def _run(self, loop: Callable[[], None]) -> None:
        with suppress(gevent.GreenletExit):  # its traceback would keep the socket that was in use
            loop()

    def _in_hub(self, call: Callable[[], None]) -> None:
        if thread_id() == self._thread:
            call()
        else:
            self._hub.loop.run_callback_threadsafe(call)

    def _abandon(self) -> None:
        """In a process that was forked: all that is of the other one."""
        self._is_started = False
        self._news = None
        self._settle()
        for greenlet in self._greenlets:
            greenlet.kill(block=False)
        self._greenlets = []

    def _connect(self, timeout: float) -> redis.Redis:
        return redis.Redis.from_url(
            self._url,
            max_connections=1,
            socket_timeout=timeout,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def flush(self, timeout: float | None = None) -> bool:
        if not self._is_started:
            return True
        with self._lock:
            last = self._unsent[-1][1].number if self._unsent else 0
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._holds(last) and not self._is_stopped:
            if deadline is not None and time.monotonic() >= deadline:
                break
            gevent.sleep(_LOOK)  # an Event would be of one thread
        return not self._holds(last)

    def _holds(self, number: int) -> bool:
        """Whether an entry, or one before it, is still not in its log."""
        with self._lock:
            return bool(self._unsent) and self._unsent[0][1].number <= number

    def stop(self) -> None:
        was_stopped, self._is_stopped = self._is_stopped, True
        if self._is_started and not was_stopped:
            self._report_lost()
            gevent.killall(self._greenlets)
            self._greenlets.clear()
            self._commands.connection_pool.disconnect()
            self._tune_out()

    def _end(self, since: float) -> None:
        """When the program ends. It has waited for others since then."""
        if not self._is_started or self._is_stopped:
            return
        if self._waiting and self._is_away:  # said now, as the wait may be cut short
            _logger.warning(
                "%d messages wait for Redis, and the program %.3g s for it to come back",
                *(self._waiting, self._timeout),
            )
        if self._waiting or not self._is_away:
            self.flush(since + self._timeout - time.monotonic())
        self._report_lost()

    def _report_lost(self) -> None:
        if self._waiting:
            _logger.error("%d messages that waited for Redis are lost", self._waiting)

    # -- what rooms call

    def open(self, room: str) -> None:
        if not self._is_started:
            self._settle()
        self._start()
        channel = self._channels.get(room)
        if channel is None:
            with self._lock:
                channel = self._channels[room] = _Channel()
                # To these comes what is published meanwhile.
                channel.sent.extend(entry for name, entry in self._unsent if name == room)
                if channel.sent:
                    channel.unread_since = self._lost_at - self._timeout
            try:
                self._open(room, channel)
            except BaseException:
                del self._channels[room]
                raise
            finally:
                channel.opened.set()
                self._change(room)
            return
        channel.openers += 1
        try:
            channel.opened.wait()
        except BaseException:
            if self._channels.get(room) is channel:
                self.close(room)
            raise
        if self._channels.get(room) is not channel:  # who opened it was killed meanwhile
            self.open(room)

    def position(self, room: str) -> str:
        return self._channels[room].position(self.origin)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        channel = self._channels[room]
        return {key: other.info for key, other in channel.elsewhere.items() if other.is_alive}

    def _open(self, room: str, channel: _Channel) -> None:
        look = None
        if not self._is_away:
            try:
                look = self._look(room)
            except _ERRORS as error:
                self._lose(error, writable=False)
        if look is None:
            channel.is_stale = True
            # Behind all of ours that Redis has, whatever this machine's clock says.
            now = int(time.time() * 1000) + self._skew
            place = max(_behind(now - 1), self._last_added, key=order)
            look = _Look(place, 0, [])
        channel.elsewhere = {other.member: other for other in look.members}  # to be buried, too
        with self._lock:
            channel.place = look.place
            while channel.sent and channel.sent[0].number <= look.ours:
                channel.sent.popleft()
            if self._is_away and channel.sent:
                channel.ahead = channel.sent[-1].number

    def close(self, room: str) -> bool:
        channel = self._channels[room]
        channel.openers -= 1
        if channel.openers:
            return False
        del self._channels[room]
        self._change(room)
        return True

    def _change(self, room: str) -> None:
        self._changed.add(room)
        self._rooms_changed.set()

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        self._publish(room, JOIN, json.dumps(info), member)

    def leave(self, room: str, member: str) -> None:
        if not self._is_stopped:
            self._publish(room, LEAVE, "{}", member)

    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        self._start()
        if self._pending(room) >= self._max_pending:
            raise BrokerUnavailable(
                f"{self._pending(room)} messages wait for Redis already (max_pending): is it up, "
                "and does it keep up? A loop that sends without a pause lets nobody else run; it "
                "needs a gevent.sleep(0)"
            )
        self._publish(room, TEXT if isinstance(data, str) else BYTES, data, "", exclude)

    def _pending(self, room: str) -> int:
        channel = self._channels.get(room)
        if channel is None or self._readable or len(channel.sent) < self._max_pending:
            return self._waiting
        return max(self._waiting, sum(entry.is_message for entry in channel.sent))

    def _publish(
        self,
        room: str,
        kind: str,
        data: str | bytes,
        member: str = "",
        exclude: WebSocket | None = None,
    ) -> None:
        with self._lock:
            entry = LogEntry(None, self.origin, next(self._numbers), kind, data, member, exclude)
            channel = self._channels.get(room)
            if channel is not None and channel.is_broken:
                self._deliver_unlogged(room, channel, entry)
                return
            self._unsent.append((room, entry))
            self._waiting += entry.is_message
            if channel is not None:
                if entry.kind == JOIN:
                    channel.members[member] = str(data)
                elif entry.kind == LEAVE:
                    channel.members.pop(member, None)
                if not channel.sent:
                    channel.unread_since = time.time()
                channel.sent.append(entry)
                if self._is_away and channel.place:
                    self._deliver_unlogged(room, channel, entry)
        self._in_hub(self._wake.set)

    def resume(self, room: str, since: str) -> LogReplay:
        start = self._parse_since(since)
        return LogReplay(
            self.origin,
            start,
            self._find_ours(room, start),
            partial(self._snapshot, room),
            partial(self._read_log, room),
        )

    def _parse_since(self, since: str) -> Position:
        try:
            position = Position.parse(since)
        except ValueError:
            return Position(BEGINNING)
        # No clock is that far ahead: a client that invents a position must not be deaf for ever.
        latest = time.time() * 1000 + self._skew + _FUTURE
        return position if order(position.id)[0] <= latest else Position(BEGINNING)

    def _snapshot(self, room: str) -> Snapshot:
        channel = self._channels[room]
        return Snapshot(
            channel.place, [entry for entry in channel.sent if entry.number <= channel.ahead]
        )

    def _find_ours(self, room: str, start: Position) -> bool:
        """A client may have received in another process what this one has sent and has not found
        in the log yet. False if that cannot be known."""
        channel = self._channels[room]
        heard = start.unlogged.get(self.origin, 0)  # almost always all, and not worth waiting for
        if order(channel.place) < order(start.id) or self._snapshot(room).unlogged:
            patience = 0.0 if heard else self._timeout
            number = self._insist(room, lambda: self._look_back(room, start.id), patience)
            if number is None:
                return heard > 0
            if number > heard:
                start.unlogged[self.origin] = number
        return True

    def _insist(self, room: str, call: Callable[[], _T], patience: float) -> _T | None:
        """Gives Redis so many seconds to come back."""
        deadline = time.monotonic() + patience
        delay = _FIRST_DELAY
        while True:
            try:
                return call()
            except _ERRORS as error:
                self._lose(error, writable=False)
                if self._is_stopped or time.monotonic() + delay > deadline:
                    _logger.warning("the history of the room %r is out of reach: %s", room, error)
                    return None
            gevent.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _look_back(self, room: str, until: str) -> int:
        """All that could be asked for is not older than what this process has not read yet."""
        channel = self._channels[room]
        earliest = channel.unread_since * 1000 + self._skew - _MARGIN
        key, end = self._key("room", room), until
        while channel.sent:
            found: Any = self._command(
                partial(redis.Redis.xrevrange, name=key, max=end, count=_BATCH)
            )
            for id_, fields in found:
                if fields.get(b"o") == self.origin.encode():
                    entry = parse(room, id_, fields)
                    return entry.number if entry else 0
            if len(found) < _BATCH or order(found[-1][0])[0] < earliest:
                break
            end = f"({found[-1][0].decode()}"
            turns.end()
        return 0

    def _read_log(self, room: str, after: str, until: str) -> Iterator[tuple[list[LogEntry], bool]]:
        """The entries between two stream ids in pages, each with whether some before it are
        missing: the log may be trimmed while it is being read."""
        read: Callable[[], tuple[Any, bool]] = partial(self._first_page, room, after, until)
        count = _FIRST_PAGE
        while True:
            page = self._insist(room, read, self._timeout)
            if page is None:
                yield [], True
                return
            found, gap = page
            parsed = (parse(room, id_, fields) for id_, fields in found)
            yield [entry for entry in parsed if entry is not None], gap
            if len(found) < count or found[-1][0].decode() == until:
                return
            size = sum(len(fields.get(b"d", b"")) for _, fields in found)
            count = max(1, min(_PAGE, _PAGE_BYTES * len(found) // max(size, 1)))
            read = partial(self._next_page, room, found[-1][0].decode(), until, count)

    def _next_page(self, room: str, after: str, until: str, count: int) -> tuple[Any, bool]:
        key = self._key("room", room)
        found, oldest = self._command(
            partial(_page, key=key, after=after, until=until, count=count)
        )
        return found, not oldest or order(oldest[0][0]) > order(after)

    def _first_page(self, room: str, after: str, until: str) -> tuple[Any, bool]:
        key = self._key("room", room)

        def fetch(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)  # a Redis that is full takes no MULTI
            pipeline.xrange(key, f"({after}", until, count=_FIRST_PAGE)
            pipeline.xinfo_stream(key)
            pipeline.time()
            return pipeline.execute(raise_on_error=False)

        found, info, now = self._command(fetch)
        if isinstance(now, Exception):
            raise now
        time_, count = order(after)
        # What came after ``after`` cannot have expired yet, if that is not long ago. But an entry
        # that should be there and is not was lost with all that Redis knew.
        is_recent = now[0] - time_ / 1000 < self._max_age and count == _BEHIND
        if isinstance(info, Exception) or isinstance(found, Exception):  # no such key
            return [], not is_recent
        first = info["first-entry"]
        is_whole = info.get("entries-added") == info["length"]  # Redis 7
        complete = (is_recent and is_whole) or (
            first is not None and order(first[0]) <= order(after)
        )
        return found, not complete

    def newest(self, room: str, count: int) -> list[Message]:
        self._start()
        key = self._key("room", room)
        found: list[Message] = []
        end = "+"
        try:
            while len(found) < count:
                size = max(2 * count, 200)  # who came and went stands there too
                newest: Any = self._command(
                    lambda client, end=end, size=size: client.xrevrange(key, end, count=size)  # type: ignore[misc]
                )
                entries = (parse(room, id_, fields) for id_, fields in newest)
                found += [
                    Message(entry.id or "", entry.data)
                    for entry in entries
                    if entry is not None and entry.is_message
                ]
                if len(newest) < size:
                    break
                end = f"({newest[-1][0].decode()}"
                turns.end_if_over()
        except redis.ResponseError as error:
            _logger.error("the room %r has no history: %s", room, error)
        except _ERRORS as error:
            self._lose(error, writable=False)
        return found[:count][::-1]

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        self._start()
        try:
            members = self._look(room).members
        except _ERRORS as error:
            self._lose(error, writable=False)
            return {}
        return {other.member: other.info for other in members if other.is_alive}

    def _look(self, room: str) -> _Look:
        keys = [self._key("room", room), self._key("here", room), self._key("from", self.origin)]
        place, ours, here, live, (seconds, micros) = self._command(
            lambda client: client.eval(_LOOK_SCRIPT, len(keys), *keys, self._key("alive", ""))
        )
        members = []
        for (key, value), is_alive in zip(_pairs(here), live, strict=True):
            try:
                origin, _, text = value.decode().partition(" ")
                info = json.loads(text)
                if isinstance(info, dict) and origin != self.origin:
                    members.append(_Other(key.decode(), origin, info, bool(is_alive)))
            except (ValueError, RecursionError):
                _logger.warning(
                    "skipped a member of the room %r that is none: %r", room, value[:200]
                )
        # In the millisecond of an entry that is added next, its place must be behind this one.
        now = int(seconds) * 1000 + int(micros) // 1000
        self._skew = now - int(time.time() * 1000)
        return _Look(place.decode() or _behind(now - 1), ours, members)

    # -- writing

    def _write(self) -> None:
        delay = _FIRST_DELAY
        while True:
            if self._unsent:
                gevent.sleep(0)  # somebody else may run, and send more
                turns.end_if_over()
            else:
                self._wake.wait(max(0.0, self._next_beat - time.monotonic()))
            self._wake.clear()
            try:
                if not self._writable:
                    self._command(lambda client: client.ping(), urgent=True)
                if time.monotonic() >= self._next_beat:
                    self._beat()
                self._append()
            except Exception as error:
                self._lose(error, writable=False)
                gevent.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                self._wake.set()
            else:
                delay = _FIRST_DELAY
                if not self._writable:
                    self._writable = True
                    self._find()

    def _append(self) -> None:
        batch = []
        size = 0
        for each in list(itertools.islice(self._unsent, _BATCH)):  # a thread may add some
            batch.append(each)
            size += len(each[1].data)
            if size >= _BATCH_BYTES:
                break
        if not batch:
            return
        keys = [self._key("from", self.origin)]
        values: list[Any] = [self.origin, self._history, self._max_age, self._presence_age]
        values += [self._suffix, self._key("alive", "")]
        for room, entry in batch:
            keys += [self._key("room", room), self._key("here", room)]
            values += [entry.number, entry.kind, entry.data, entry.member]
        added, failed, unheard = self._command(
            lambda client: client.eval(_APPEND_SCRIPT, len(keys), *keys, *values), urgent=True
        )
        with self._lock:
            for _, entry in batch:
                self._unsent.popleft()
                self._waiting -= entry.is_message
        if added:
            self._last_added = added.decode()
        if unheard and not self._is_unheard:
            _logger.error(
                "Redis does not publish what is sent, so that nobody hears it: %s", unheard.decode()
            )
        self._is_unheard = bool(unheard)
        if failed:
            self._report(batch, {int(number): why.decode() for number, why in _pairs(failed)})

    def _report(self, batch: list[tuple[str, LogEntry]], failed: dict[int, str]) -> None:
        """What cannot be in the log is heard in this process at least."""
        told: set[str] = set()
        for room, entry in batch:
            why = failed.get(entry.number)
            channel = self._channels.get(room)
            if why is None or (channel is not None and channel.is_broken):
                continue
            if channel is not None and "WRONGTYPE" in why:
                self._break(room, channel)
                continue
            if room not in told:
                told.add(room)
                _logger.error("Redis does not take messages of the room %r: %s", room, why)
            if channel is not None:
                with self._lock, suppress(ValueError):
                    channel.sent.remove(entry)
                    if entry.number > channel.ahead:
                        self._deliver_unlogged(room, channel, entry)

    def _break(self, room: str, channel: _Channel) -> None:
        with self._lock:
            channel.is_broken = True
            self._hand_out(room, channel)
            channel.sent.clear()
        _logger.error(
            "the key of the room %r holds something else than a log: it is a room of this process "
            "alone until that is gone and the room was empty",
            room,
        )

    def _beat(self) -> None:
        """Tells that this process lives, and buries the members of those that do not."""
        key = self._key("alive", self.origin)
        seconds = max(1, round(self._presence_timeout))
        was_alive = self._command(
            lambda client: client.set(key, "1", ex=seconds, get=True), urgent=True
        )
        now = time.monotonic()
        if self._has_beaten and was_alive is None:  # others have taken this process for dead
            for room, channel in list(self._channels.items()):
                for member, info in list(channel.members.items()):
                    self._publish(room, JOIN, info, member)
        self._has_beaten = True
        origins = {
            other.origin
            for channel in self._channels.values()
            for other in channel.elsewhere.values()
        }
        # The first beat after an outage comes before _find().
        may_bury = now >= self._next_burial and not self._is_away
        dead = self._dead(origins) if may_bury else set()
        for room, channel in list(self._channels.items()):
            for other in [each for each in channel.elsewhere.values() if each.origin in dead]:
                del channel.elsewhere[other.member]
                self._publish(room, BURIAL, "{}", other.member)
        if now >= self._next_renewal:
            self._next_renewal = now + self._max_age / 3
            names = [self._key("here", room) for room in self._channels]
            for first in range(0, len(names), _BATCH):
                some = names[first : first + _BATCH]
                self._command(partial(_expire, keys=some, seconds=self._presence_age), urgent=True)
        self._next_beat = now + self._presence_timeout / 3

    def _dead(self, origins: set[str]) -> set[str]:
        """Those of the processes that have no heartbeat."""
        if not origins:
            return set()
        names = list(origins)
        keys = [self._key("alive", name) for name in names]
        found: Any = self._command(lambda client: client.mget(keys), urgent=True)
        return {name for name, beat in zip(names, found, strict=True) if beat is None}

    # -- reading

    def _read(self) -> None:
        delay = _FIRST_DELAY
        while True:
            self._is_tuned = False
            try:
                self._listen(self._tune_in())
            except Exception as error:
                self._lose(error, readable=False)
            self._tune_out()
            if self._is_tuned:
                delay = _FIRST_DELAY
            gevent.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _listen(self, news: Any) -> None:
        """Takes what is published; returns when a connection that has worked was closed, as Redis
        does to one who is slow. It may well be there."""
        fresh: set[str] = set()  # rooms whose entries are published to us from now on
        while self._news is news:
            try:
                with _closed_by_another():
                    answer = news.read_response(disable_decoding=True)
            except redis.ConnectionError as error:
                if not self._is_tuned:
                    raise
                _logger.info("subscribing again: %s", error)
                return
            self._hear(answer, fresh)
            turns.end_if_over()

    def _tune_in(self) -> Any:
        while self._readable and not self._channels:
            self._rooms_changed.wait()
            if not self._channels:
                self._rooms_changed.clear()
        pool = self._connect(_PING + self._timeout).connection_pool
        news: Any = pool.make_connection()
        try:
            news.connect()
        except BaseException:
            news.disconnect()
            raise
        self._news = news
        self._changed.update(self._channels)
        self._rooms_changed.set()
        return news

    def _tune_out(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.disconnect()

    def _subscribe(self) -> None:
        """Says on that connection which rooms are open, and from time to time that it is used."""
        while True:
            self._rooms_changed.wait(_PING)
            self._rooms_changed.clear()
            if self._news is None:
                continue  # who connects will subscribe to all
            changed, self._changed = self._changed, set()
            opened = [self._published(room) for room in changed if room in self._channels]
            closed = [self._published(room) for room in changed if room not in self._channels]
            try:
                for first in range(0, len(closed), _BATCH):
                    self._say("UNSUBSCRIBE", *closed[first : first + _BATCH])
                for first in range(0, len(opened), _BATCH):
                    self._say("SUBSCRIBE", *opened[first : first + _BATCH])
                self._say("PING")  # the answer to it comes behind theirs
            except Exception as error:
                self._tune_out()  # who listens will see that, and whether Redis is there
                if not isinstance(error, _ERRORS):
                    self._lose(error, readable=False)

    def _say(self, *command: str) -> None:
        if self._news is not None:
            with _closed_by_another():
                self._news.send_command(*command, check_health=False)

    def _hear(self, answer: Any, fresh: set[str]) -> None:
        kind, *rest = answer if isinstance(answer, list) else [answer]
        if kind == b"message":
            room, channel = self._channel_of(rest[0])
            if channel is not None and channel.place and not channel.is_broken:
                self._hear_entry(room, channel, rest[1])
        elif kind == b"subscribe":
            fresh.add(self._channel_of(rest[0])[0])
        elif kind.lower() == b"pong":  # of a status or of a message, as there are subscriptions
            if not self._is_tuned:
                self._look_for_gaps()
            self._read_on(list(fresh))
            fresh.clear()
            self._is_tuned = True
            self._heard_at = time.monotonic()
            if not self._readable:
                self._readable = True
                self._find()

    def _hear_entry(self, room: str, channel: _Channel, data: bytes) -> None:
        try:
            head, _, data = data.partition(b"\n")
            id_, before, origin, number, kind, member = head.split(b" ")
            place = order(id_)
        except ValueError as error:
            _logger.warning("skipped news of the room %r that are none: %r", room, error)
            return
        is_new = place > order(channel.place)
        is_in_future = place[0] > time.time() * 1000 + self._skew + _MARGIN
        if is_in_future or (is_new and before and before.decode() != channel.place):
            self._read_on([room])
        elif is_new:
            fields = {b"o": origin, b"n": number, b"k": kind, b"d": data, b"m": member}
            self._take(room, channel, id_, fields)
            self._wait_for_fan_out(room)

    def _read_on(self, rooms: list[str]) -> None:
        """Takes what the logs of some rooms hold behind what this process has heard."""
        for first in range(0, len(rooms), _ROOMS):
            some = rooms[first : first + _ROOMS]
            while some:
                try:
                    some = self._read_once(some)
                except redis.ResponseError as error:
                    self._find_broken(some, error)

    def _read_once(self, names: list[str]) -> list[str]:
        """Returns those of the rooms whose logs may hold more."""
        rooms: dict[bytes, str] = {}
        places: dict[Any, Any] = {}
        for room in names:
            channel = self._channels.get(room)
            if channel is not None and channel.place and not channel.is_broken:
                key = self._key("room", room).encode()
                rooms[key], places[key] = room, channel.place
        if not places:
            return []
        count = _BATCH // len(places) + 1
        found: Any = self._command(lambda client: client.xread(places, count=count), urgent=True)
        for key, entries in found or ():
            for id_, fields in entries:
                # It may have been closed meanwhile, and even opened again, further on.
                channel = self._channels.get(rooms[key])
                if channel is not None and channel.place and order(id_) > order(channel.place):
                    self._take(rooms[key], channel, id_, fields)
                    self._wait_for_fan_out(rooms[key])
        return [rooms[key] for key, entries in found or () if len(entries) == count]

    def _look_for_gaps(self) -> None:
        """Whether a log was trimmed beyond where this process reads on."""
        places = {
            room: channel.place
            for room, channel in self._channels.items()
            if channel.place and not channel.is_broken
        }
        names = list(places)
        is_old = time.monotonic() - self._heard_at > self._max_age
        for first in range(0, len(names), _BATCH):
            keys = [self._key("room", room) for room in names[first : first + _BATCH]]
            for room, oldest, length in zip(
                names[first:],
                *self._command(partial(_extent, keys=keys), urgent=True),
                strict=False,
            ):
                if isinstance(oldest, Exception):
                    continue
                place = order(places[room])
                is_gone = oldest and order(oldest[0][0]) > place
                if is_gone and (is_old or length >= self._history):
                    _logger.error(
                        "messages of the room %r are lost to this process: it was away from Redis "
                        "for more than %d of them or %d s; raise history and max_age",
                        *(room, self._history, self._max_age),
                    )

    def _take(self, room: str, channel: _Channel, id_: bytes, fields: dict[bytes, bytes]) -> None:
        entry = parse(room, id_, fields)
        with self._lock:
            channel.place = id_.decode()
            if entry is None:
                return
            is_repeated = False
            if entry.origin == self.origin:
                is_repeated = entry.number <= channel.ahead
                while channel.sent and channel.sent[0].number <= entry.number:
                    sent = channel.sent.popleft()
                    if sent.number == entry.number:
                        entry = entry._replace(exclude=sent.exclude)
                if entry.number >= channel.ahead:
                    channel.ahead = 0
            self._deliver(room, channel, entry, is_repeated)

    def _deliver(
        self, room: str, channel: _Channel, entry: LogEntry, is_repeated: bool = False
    ) -> None:
        if self._listener is None:
            return
        position = channel.position(self.origin)
        if is_repeated:  # it was delivered unlogged
            self._listener.deliver(room, Entry(position, None))
            return
        data = entry.data if entry.is_message else None
        self._listener.deliver(room, Entry(position, data, entry.exclude, entry))
        if not entry.is_message and entry.id is not None:
            self._take_presence(room, channel, entry)

    def _deliver_unlogged(self, room: str, channel: _Channel, entry: LogEntry) -> None:
        channel.ahead = entry.number
        self._deliver(room, channel, entry)

    def _take_presence(self, room: str, channel: _Channel, entry: LogEntry) -> None:
        info = json.loads(entry.data)
        if entry.kind == JOIN and entry.origin != self.origin:
            other = _Other(entry.member, entry.origin, info, True)
            channel.elsewhere[entry.member] = other
        elif entry.kind == LEAVE:
            channel.elsewhere.pop(entry.member, None)
            if channel.is_stale:
                channel.left.add(entry.member)
        if self._listener is not None and (entry.origin != self.origin or entry.kind == LEAVE):
            self._listener.presence(room, entry.kind, entry.member, info)

    def _wait_for_fan_out(self, room: str) -> None:
        if self._listener is not None:
            self._listener.wait(room)

    def _find_broken(self, rooms: list[str], error: redis.ResponseError) -> None:
        """XREAD fails for all rooms when the key of one holds something else."""
        found = False
        for room in rooms:
            key = self._key("room", room)
            kind: Any = self._command(partial(redis.Redis.type, name=key), urgent=True)
            channel = self._channels.get(room)
            if channel is not None and kind not in (b"stream", b"none") and not channel.is_broken:
                found = True
                self._break(room, channel)
        if not found:
            raise redis.ConnectionError(str(error))

    # -- when Redis is away

    @property
    def _is_away(self) -> bool:
        return not (self._writable and self._readable)

    def _lose(self, error: Exception, writable: bool = True, readable: bool = True) -> None:
        if not writable:
            self._wake.set()
        with self._lock:  # so that nothing gets ahead of what is handed out
            was_away = self._is_away
            self._writable = self._writable and writable
            self._readable = self._readable and readable
            if was_away or self._is_stopped:
                return
            self._lost_at = time.time()
            for room, channel in self._channels.items():
                self._hand_out(room, channel)
        _logger.warning("Redis is away: %s", error, exc_info=not isinstance(error, _ERRORS))

    def _hand_out(self, room: str, channel: _Channel) -> None:
        """What we sent, and perhaps will not hear from the log for long."""
        with self._lock:
            for entry in list(channel.sent):
                if entry.number > channel.ahead and channel.place:
                    self._deliver_unlogged(room, channel, entry)

    def _find(self) -> None:
        if self._is_away:
            return
        # The others need a moment to come back, too, and to say that they live.
        self._next_burial = time.monotonic() + self._presence_timeout
        for room, channel in list(self._channels.items()):
            if channel.is_stale:
                gevent.spawn(self._refresh, room, channel)
        _logger.warning("Redis is back")

    def _refresh(self, room: str, channel: _Channel) -> None:
        """Who is in a room that was opened while Redis was away."""
        channel.left.clear()
        try:
            members = self._look(room).members
        except _ERRORS as error:
            self._lose(error, writable=False)
            return
        channel.is_stale = False
        for other in members:
            if other.member in channel.left:
                continue
            if other.member not in channel.elsewhere and self._channels.get(room) is channel:
                channel.elsewhere[other.member] = other
                if other.is_alive and self._listener is not None:
                    self._listener.presence(room, JOIN, other.member, other.info)

    def _command(self, call: Callable[[redis.Redis], _T], urgent: bool = False) -> _T:
        """Of those that are not urgent, one at a time competes for the connection with the others:
        a message does not wait until a thousand rooms are open."""
        if not urgent:
            with self._queue:
                gevent.sleep(0)  # Redis may answer before anybody else has a turn
                return self._command(call, urgent=True)
        with self._turn:
            if self._is_stopped or not self._is_started:
                raise redis.ConnectionError("these rooms were closed")
            with _closed_by_another():
                return call(self._commands)

    def _key(self, what: str, name: str) -> str:
        return f"{self._prefix}{what}:{name}"

    def _published(self, room: str) -> str:
        return self._key("room", room) + self._suffix

    def _channel_of(self, published: bytes) -> tuple[str, _Channel | None]:
        start, end = len(self._key("room", "")), len(self._suffix)
        room = published.decode()[start:-end]
        return room, self._channels.get(room)


def _page(client: redis.Redis, key: str, after: str, until: str, count: int) -> Any:
    """Some entries of a log after ``after``, and the oldest one of all."""
    pipeline = client.pipeline(transaction=False)
    pipeline.xrange(key, f"({after}", until, count=count)
    pipeline.xrange(key, count=1)
    return pipeline.execute()


def _extent(client: redis.Redis, keys: list[str]) -> tuple[list[Any], list[Any]]:
    """The oldest entries of some logs, and how many they hold."""
    pipeline = client.pipeline()
    for key in keys:
        pipeline.xrange(key, count=1)
        pipeline.xlen(key)
    found = pipeline.execute(raise_on_error=False)  # a key may hold something else
    return found[::2], found[1::2]


def _expire(client: redis.Redis, keys: list[str], seconds: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.expire(key, seconds)
    pipeline.execute()


def _behind(time: int) -> str:
    return f"{time}-{_BEHIND}"


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


@contextmanager
def _closed_by_another() -> Iterator[None]:
    """What redis-py and ssl raise when another greenlet closes the connection that they use."""
    try:
        yield
    except (ValueError, AttributeError) as error:
        raise redis.ConnectionError(f"the connection was closed: {error}") from error


def _stripped(url: str) -> str:
    """Without the options that are not the user's here."""
    address, _, query = url.partition("?")
    options = [each for each in query.split("&") if each and each.partition("=")[0] not in _OURS]
    return "?".join([address, "&".join(options)] if options else [address])


def _check_sockets(url: str) -> None:
    is_patched = issubclass(vars(redis.connection)["socket"].socket, gevent_socket.socket)
    if url.startswith("rediss:"):
        is_patched = is_patched and is_module_patched("ssl")
    if not is_patched:
        raise RuntimeError(
            "redis-py would block every greenlet of this process while it waits for Redis: put "
            "'from gevent import monkey; monkey.patch_all()' before all other imports of the "
            "program (gunicorn's gevent workers, without --preload, and run_server.py do that "
            "themselves)"
        )


_started: weakref.WeakSet[RedisBroker] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    now = time.monotonic()
    for broker in list(_started):
        broker._end(now)


def _abandon_all() -> None:
    for broker in list(_started):
        broker._abandon()


os.register_at_fork(after_in_child=_abandon_all)
