"""What is asked of a Redis about rooms: by brokers, and by ``greenws.Sender``. Knows no gevent, and
waits for nothing but an answer: who asks decides what to do without one.

Each function takes the client to ask, and raises ``redis.RedisError`` or ``OSError``.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import redis

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
    "Look",
    "Other",
    "append",
    "append_arguments",
    "disconnect",
    "floor_of",
    "look",
    "newest",
    "parse_appended",
    "parse_info",
    "without_the_dead",
]

# The count in a stream id that is no entry's, but a time: of a room that was opened without Redis.
AFTER_ALL = 2**64 - 1  # after all of that millisecond
PERHAPS_AFTER_ALL = AFTER_ALL - 1  # the same, by a clock that may be wrong
_MOST = 2**31 - 1  # messages that are asked for at once
_MEMORY = 86400  # seconds of an outage after which a process may repeat what it has appended
DISCONNECT = b"disconnect "  # begins what is published to close members
SEVERAL = b" several"  # ends the first line of what is published of several entries

APPEND = scripts.load("append")
_LOOK = scripts.load("look")

_logger = logging.getLogger("greenws.brokers.redis")


class Appended(NamedTuple):
    """``last_id``: the stream id of the last entry that was appended now; empty if none was.
    ``failed``: why those were not that cannot be, by number. ``unpublished``: why Redis does not
    publish them; empty if it does."""

    last_id: str
    failed: dict[int, str]
    unpublished: str


def append(
    client: redis.Redis,
    keys: Keys,
    options: Options,
    origin: str,
    batch: Sequence[tuple[str, LogEntry]],
    memory: int = _MEMORY,
) -> Appended:
    """Appends entries to the logs of rooms, and publishes them; but for those that were appended
    before, by a call whose answer was lost. ``memory``: seconds for which Redis knows that."""
    names, values = append_arguments(keys, options, origin, batch, memory)
    return parse_appended(client.eval(APPEND, len(names), *names, *values))


def append_arguments(
    keys: Keys,
    options: Options,
    origin: str,
    batch: Sequence[tuple[str, LogEntry]],
    memory: int = _MEMORY,
) -> tuple[list[str], list[Any]]:
    """Keys and values of the script APPEND. In a cluster, a batch is of one room."""
    names = [keys.last_number(origin, batch[0][0])]
    values: list[Any] = [origin, options.history, options.expiry, options.history_bytes]
    values += [keys.suffix, keys.publish, memory]
    for room, entry in batch:
        names.append(keys.log(room))
        values += [entry.number, entry.kind, entry.data]
    return names, values


def parse_appended(found: Any) -> Appended:
    added, failed, unpublished = found
    pairs = zip(failed[::2], failed[1::2], strict=True)
    return Appended(
        added.decode(),
        {int(number): why.decode() for number, why in pairs},
        unpublished.decode() if unpublished else "",
    )


class Other(NamedTuple):
    """A member in another process, which may be dead."""

    origin: str
    info: dict[str, Any]
    is_alive: bool


class Look(NamedTuple):
    """What Redis knew of a room at one moment."""

    id: str
    """Of the last entry of its log; empty if there is no log."""
    floor: str
    """An id after which nothing is missing in the log, though it is that of no entry; if known."""
    seconds: int
    micros: int
    """The time."""
    ours: int
    """The number of the last of all entries of this process that stand in a log."""
    version: str
    """Of the members; empty if there never were any."""
    others: dict[str, Other]
    mine: dict[str, str]
    """The members of this process, with their values."""

    @property
    def now(self) -> int:
        """The time, in milliseconds."""
        return self.seconds * 1000 + self.micros // 1000

    @property
    def end(self) -> str:
        """The stream id of the last entry, or one that comes before all that is appended next."""
        return self.id or f"{self.now - 1}-{AFTER_ALL}"

    @property
    def alive(self) -> dict[str, dict[str, Any]]:
        """The infos of the others that live."""
        return {member: other.info for member, other in self.others.items() if other.is_alive}


def look(client: redis.Redis, keys: Keys, origin: str, room: str, log_age: int = 0) -> Look:
    """``log_age``: seconds until a log expires that is made if there is none, as far as Redis takes
    writes; 0 if it is not. In a cluster, all others are taken to live."""
    names = [keys.log(room), keys.members(room), keys.last_number(origin, room)]
    found: Any = client.eval(_LOOK, len(names), *names, keys.script_alive_prefix, str(log_age))
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
    return Look(id_.decode(), floor, *time, ours, version.decode(), others, mine)


def without_the_dead(client: redis.Redis, keys: Keys, found: Look) -> Look:
    """In a cluster, which process lives is asked apart; elsewhere it is known."""
    if keys.is_cluster:
        origins = {other.origin for other in found.others.values()}
        dead = {origin for origin in origins if not client.exists(keys.alive(origin))}
        for key, other in found.others.items():
            found.others[key] = other._replace(is_alive=other.origin not in dead)
    return found


def floor_of(groups: Any) -> str:
    """The id after which nothing is missing in a log (``look.lua``), of what XINFO GROUPS answers;
    empty if there is none."""
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
    """The newest messages of a log, the newest first. ``fetch`` has a client asked; others may run
    between two messages."""
    key, found, end = keys.log(room), 0, "+"
    count = min(count, _MOST)  # Redis takes no number beyond 64 bits
    while found < count:
        page: Any = fetch(partial(redis.Redis.xrevrange, name=key, max=end, count=count))
        entries = (parse(room, id_, fields) for id_, fields in page)
        for entry in itertools.islice((each for each in entries if each), count - found):
            found += 1
            yield Message(entry.id or "", entry.data)
        if len(page) < count:
            return
        end = f"({page[-1][0].decode()}"


def disconnect(
    client: redis.Redis, keys: Keys, room: str, code: int, reason: str, member: str | None
) -> None:
    """Has all processes close the members of a room, or one."""
    text = b"%s%d %s\n%s" % (DISCONNECT, code, (member or "").encode(), reason.encode())
    channel = keys.channel(room)
    client.spublish(channel, text) if keys.is_cluster else client.publish(channel, text)
