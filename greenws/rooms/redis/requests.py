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

from ..broker import Message
from . import scripts
from .entries import LogEntry, parse
from .keys import Keys
from .options import Options

__all__ = [
    "AFTER_ALL",
    "DISCONNECT",
    "Appended",
    "Look",
    "Other",
    "append",
    "disconnect",
    "look",
    "newest",
    "parse_info",
]

AFTER_ALL = 2**64 - 1  # the count in a stream id after all of a millisecond; never an entry's
DISCONNECT = b"disconnect "  # begins what is published to close members

_APPEND = scripts.load("append")
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
) -> Appended:
    """Appends entries to the logs of rooms, and publishes them; but for those that were appended
    before, by a call whose answer was lost."""
    names = [keys.last_number(origin)]
    values: list[Any] = [origin, options.history, options.expiry, options.history_bytes]
    values.append(keys.suffix)
    for room, entry in batch:
        names.append(keys.log(room))
        values += [entry.number, entry.kind, entry.data]
    found: Any = client.eval(_APPEND, len(names), *names, *values)
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
    """Of the last entry of its log; empty if there is none."""
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


def look(client: redis.Redis, keys: Keys, origin: str, room: str) -> Look:
    names = [keys.log(room), keys.members(room), keys.last_number(origin)]
    found: Any = client.eval(_LOOK, len(names), *names, keys.alive_prefix)
    id_, ours, version, members, (seconds, micros) = found
    others: dict[str, Other] = {}
    mine: dict[str, str] = {}
    for key, value, is_alive in members:
        owner, _, text = value.decode(errors="replace").partition(" ")
        if owner == origin:
            mine[key.decode()] = value.decode()
        elif (info := parse_info(room, text)) is not None:
            others[key.decode(errors="replace")] = Other(owner, info, bool(is_alive))
    return Look(id_.decode(), int(seconds), int(micros), ours, version.decode(), others, mine)


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
    client.publish(keys.channel(room), text)
