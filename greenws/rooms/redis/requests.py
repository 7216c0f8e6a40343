"""The requests about rooms that brokers and ``greenws.Sender`` send to a Redis. Imports no gevent.

Each function takes a redis-py client, waits for its answer, and raises ``redis.RedisError`` or
``OSError``; callers decide whether to try again.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import redis

from ...rate_limit import RateLimit
from ..broker import BEGINNING, Message
from . import scripts
from .entries import LogEntry, parse
from .keys import Keys
from .options import Options

__all__ = [
    "AFTER_ALL",
    "APPEND",
    "DISCONNECT",
    "PERHAPS_AFTER_ALL",
    "SEVERAL",
    "Appended",
    "RefusalLog",
    "Snapshot",
    "Other",
    "append",
    "append_arguments",
    "disconnect",
    "floor_of",
    "take_snapshot",
    "newest",
    "parse_appended",
    "parse_info",
    "mark_dead",
]

# The second part of a stream id that is a time, not an entry: of a room opened without Redis.
AFTER_ALL = 2**64 - 1  # after all entries of that millisecond
PERHAPS_AFTER_ALL = AFTER_ALL - 1  # the same, by a clock that may be wrong
_MAX_AT_ONCE = 500  # messages to ask for at once, which the script holds in memory
_UNPUBLISHED_RATE = 1 / 60  # errors about PUBLISH in a second
_MEMORY = 86400  # seconds for which Redis recognises entries that are appended again
DISCONNECT = b"disconnect "  # prefix of a Pub/Sub message that closes members
SEVERAL = b" several"  # ends the first line of a Pub/Sub message with several entries

APPEND = scripts.load("append")
_SNAPSHOT = scripts.load("snapshot")
_NEWEST = scripts.load("newest")

_logger = logging.getLogger("greenws.brokers.redis")


class Appended(NamedTuple):
    """``last_id``: the stream id of the last entry that was appended; empty if none was.
    ``failed``: the errors of entries that cannot be appended, by number. ``unpublished``: why Redis
    does not publish them; empty if it does. ``untrimmed``: likewise, for trimming their logs."""

    last_id: str
    failed: dict[int, str]
    unpublished: str
    untrimmed: str = ""


class RefusalLog:
    """Logs what Redis refuses to do besides appending: that it does not publish, once until it
    does, and at most once a minute, as it may permit the channels of some rooms only; that it does
    not trim logs, once for each command, as some are tried once a second."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._is_unpublished = False
        self._limit = RateLimit(_UNPUBLISHED_RATE, burst=1)
        self._untrimmed: set[str] = set()  # commands

    def note(self, appended: Appended) -> None:
        if not appended.unpublished:
            self._is_unpublished = False
        elif not self._is_unpublished and self._limit.take():
            self._is_unpublished = True
            self._logger.error(
                "Redis does not publish messages, so no member receives them: %s",
                appended.unpublished,
            )
        command = appended.untrimmed.partition(":")[0]
        if command and command not in self._untrimmed:
            self._untrimmed.add(command)
            self._logger.error(
                "Redis does not trim the logs of rooms, which grow: %s", appended.untrimmed
            )


def append(
    client: redis.Redis,
    keys: Keys,
    options: Options,
    origin: str,
    batch: Sequence[tuple[str, LogEntry]],
    memory: int = _MEMORY,
) -> Appended:
    """Appends entries to the logs of rooms, and publishes them. Entries that an earlier call has
    appended, whose answer was lost, are skipped. ``memory``: seconds for which they are known."""
    names, values = append_arguments(keys, options, origin, batch, memory)
    return parse_appended(client.eval(APPEND, len(names), *names, *values))


def append_arguments(
    keys: Keys,
    options: Options,
    origin: str,
    batch: Sequence[tuple[str, LogEntry]],
    memory: int = _MEMORY,
) -> tuple[list[str], list[Any]]:
    """Keys and values of the script APPEND. In a cluster, a batch concerns one room."""
    names = [keys.last_number(origin, batch[0][0])]
    values: list[Any] = [origin, options.history, options.expiry, options.history_bytes]
    highest = max(entry.number for _, entry in batch)
    values += [keys.suffix, keys.publish, memory, highest, random.getrandbits(20)]
    rooms: dict[str, list[Any]] = {}
    for room, entry in batch:
        messages = rooms.get(room)
        if messages is None:
            messages = rooms[room] = []
        messages += (entry.number, entry.kind, entry.data)
    for room, messages in rooms.items():
        names.append(keys.log(room))
        values.append(len(messages) // 3)
        values += messages
    return names, values


def parse_appended(found: Any) -> Appended:
    added, failed, unpublished, untrimmed = found
    pairs = zip(failed[::2], failed[1::2], strict=True)
    return Appended(
        added.decode(),
        {int(number): why.decode() for number, why in pairs},
        unpublished.decode() if unpublished else "",
        untrimmed.decode() if untrimmed else "",
    )


class Other(NamedTuple):
    """A member in another process, which may be dead."""

    origin: str
    info: dict[str, Any]
    is_alive: bool


class Snapshot(NamedTuple):
    """A snapshot of a room in Redis."""

    id: str
    """The id of the last entry of its log; empty if there is no log."""
    floor: str
    """An id after which nothing is missing in the log, although no entry has it; if known."""
    seconds: int
    micros: int
    """The time of Redis, in microseconds."""
    ours: int
    """The number of this process's last entry in any log."""
    version: str
    """The version of the members; empty if there never were any."""
    others: dict[str, Other]
    mine: dict[str, str]
    """The members of this process, with their values."""

    @property
    def now(self) -> int:
        """The time of Redis, in milliseconds."""
        return self.seconds * 1000 + self.micros // 1000

    @property
    def end(self) -> str:
        """The stream id of the last entry; without one, an id before all later entries."""
        return self.id or f"{self.now - 1}-{AFTER_ALL}"

    @property
    def alive(self) -> dict[str, dict[str, Any]]:
        """The infos of members in other processes that are not dead."""
        return {member: other.info for member, other in self.others.items() if other.is_alive}


def take_snapshot(
    client: redis.Redis, keys: Keys, origin: str, room: str, log_age: int = 0
) -> Snapshot:
    """Reads a snapshot. ``log_age``: makes a log if there is none and Redis accepts writes, which
    expires after so many seconds; 0 makes none. In a cluster, no process counts as dead here."""
    names = [keys.log(room), keys.members(room), keys.last_number(origin, room)]
    found: Any = client.eval(_SNAPSHOT, len(names), *names, keys.script_alive_prefix, str(log_age))
    id_, floor_, ours, version, members, (seconds, micros) = found
    floor = "" if floor_ == BEGINNING.encode() else floor_.decode()
    others: dict[str, Other] = {}
    mine: dict[str, str] = {}
    for key, value, is_alive in members:
        owner, _, text = value.decode(errors="replace").partition(" ")
        if owner == origin:
            mine[key.decode()] = value.decode()
        elif (info := parse_info(room, text)) is not None:
            others[key.decode(errors="replace")] = Other(owner, info, bool(is_alive))
    time = int(seconds), int(micros)
    return Snapshot(id_.decode(), floor, *time, ours, version.decode(), others, mine)


def mark_dead(client: redis.Redis, keys: Keys, found: Snapshot) -> Snapshot:
    """Marks members of dead processes. In a cluster that takes a request; elsewhere it is known."""
    if keys.is_cluster:
        origins = {other.origin for other in found.others.values()}
        dead = {origin for origin in origins if not client.exists(keys.alive(origin))}
        for key, other in found.others.items():
            found.others[key] = other._replace(is_alive=other.origin not in dead)
    return found


def floor_of(groups: Any) -> str:
    """The floor of a log (see ``snapshot.lua``), from an answer to XINFO GROUPS; empty if there is
    none."""
    for each in groups if isinstance(groups, list) else ():
        if each["name"] == b"greenws":
            floor = str(each["last-delivered-id"].decode())
            return "" if floor == BEGINNING else floor
    return ""


def parse_info(room: str, text: str) -> dict[str, Any] | None:
    try:
        info = json.loads(text)
        if isinstance(info, dict):
            return info
    except (ValueError, RecursionError):
        pass
    _logger.warning("ignoring a malformed member of room %r: %r", room, text[:200])
    return None


def newest(
    fetch: Callable[[Callable[[redis.Redis], Any]], Any], keys: Keys, room: str, count: int
) -> Iterator[Message]:
    """The newest messages of a log, the newest first. ``fetch`` calls a function with a client;
    other greenlets may run between two messages."""
    key, left, end = keys.log(room), count, "+"
    while left > 0:
        size = min(left, _MAX_AT_ONCE)
        page = fetch(partial(_newest_page, key, end, size))
        read = 0
        parts = iter(page)
        for part in parts:
            read += 1
            if isinstance(part, list):
                id_, fields = part
                pairs = dict(zip(fields[::2], fields[1::2], strict=True))
            else:
                id_ = part
                pairs = {b"o": b"", b"n": b"0", b"k": next(parts), b"d": next(parts)}
            end = f"({id_.decode()}"
            entry = parse(room, id_, pairs)
            if entry is not None:
                left -= 1
                yield Message(entry.id or "", entry.data)
        if read < size:
            return


def _newest_page(key: str, end: str, size: int, client: redis.Redis) -> Any:
    return client.eval(_NEWEST, 1, key, end, str(size))


def disconnect(
    client: redis.Redis, keys: Keys, room: str, code: int, reason: str, member: str | None
) -> None:
    """Makes all processes close the members of a room, or one of them."""
    text = b"%s%d %s\n%s" % (DISCONNECT, code, (member or "").encode(), reason.encode())
    channel = keys.channel(room)
    client.spublish(channel, text) if keys.is_cluster else client.publish(channel, text)
