"""``Sender``: sends to the rooms of servers from any other Python process. Imports no gevent.

It is the sending half of ``Rooms`` over Redis: what it sends is appended to the same logs by the
same script, and each process that has members of the room delivers it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import arguments
from . import stamp as stamps
from .broker import BEGINNING, BrokerUnavailable
from .presence import Presence, unpack_all
from .stamp import Stamp

if TYPE_CHECKING:
    import redis

    from .redis.caller import Caller

__all__ = ["RemoteRoom", "Sender"]

_MARGIN = 60  # seconds, for a Redis that was stopped with what it had received

_logger = logging.getLogger("greenws.rooms")


class Sender:
    """``Sender("redis://localhost")["lobby"].send("hello")``: sends to rooms from a program that
    has no WebSockets: a Celery task, a cron job, Django's ``manage.py``, any script or thread.

    ``url``: as for ``Rooms``. It connects at the first call. A call blocks its thread for at most
    ``timeout`` seconds, and is repeated within that time if the connection fails: each message is
    in the room's log once, in the order of the calls. Several threads may use one sender, and so
    may a forked child, which makes a connection of its own. A small key in Redis, by which repeated
    messages are recognised, stays for ``timeout`` plus a minute. (In a program that serves
    WebSockets itself, under gevent, use ``Rooms``.)

    ``prefix``, ``history``, ``history_bytes``, ``max_age`` are those of ``RedisBroker``: give the
    same values as there. ``stamp``: that of the servers' ``Rooms``, if they have one.
    :meth:`RemoteRoom.history` applies it, and :meth:`RemoteRoom.send` refuses what it refuses.

    Raises:
        ImportError: redis-py is not installed.
        TypeError, ValueError: ``url`` is not one that ``Rooms`` accepts, or the value of an option
            is not allowed.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        stamp: Stamp | None = None,
        timeout: float = 5.0,
        prefix: str = "greenws:",
        history: int = 10_000,
        history_bytes: int = 64 * 2**20,
        max_age: float = 3600.0,
    ) -> None:
        try:
            from .redis import requests
            from .redis.caller import Caller
            from .redis.entries import LogEntry
            from .redis.options import Options
            from .redis.spread import Spread, addresses_of
        except ImportError as error:
            arguments.check_redis(error)
            raise
        stamps.check(stamp)
        self.stamp = stamp
        addresses = addresses_of(url)
        self._options = Options(
            "",
            timeout=timeout,
            prefix=prefix,
            history=history,
            history_bytes=history_bytes,
            max_age=max_age,
        )
        # No call is repeated after its timeout.
        self._memory = math.ceil(timeout) + _MARGIN
        self._requests = requests
        self._entry = LogEntry
        self._callers = [Caller(text, timeout, prefix) for text, _ in addresses]
        self._refusal_logs = {caller: requests.RefusalLog(_logger) for caller in self._callers}
        self._spread = Spread([address for _, address in addresses])
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Called in each process, after a fork too."""
        self._origin = secrets.token_hex(6)  # names this process among those that send
        self._numbers = itertools.count(1)

    def __getitem__(self, name: str) -> RemoteRoom:
        """
        Raises:
            TypeError: ``name`` is not a str.
            UnicodeEncodeError: UTF-8 cannot encode it.
        """
        arguments.check_name(name)
        return RemoteRoom(self, name)

    def close(self) -> None:
        """Closes the connection. Calls raise ``BrokerUnavailable`` from now on. Idempotent."""
        for caller in self._callers:
            caller.close()

    def _caller(self, room: str) -> Caller:
        return self._callers[self._spread.index(room)]

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sender {self._origin}>"

    # -- called by RemoteRoom

    def _append(self, room: str, data: str | bytes) -> None:
        entry: Any = None
        caller = self._caller(room)

        def request(client: redis.Redis) -> Any:
            nonlocal entry
            if entry is None:  # numbers are given in the order in which entries are appended
                entry = self._entry(None, self._origin, next(self._numbers), data)
            batch = [(room, entry)]
            return self._requests.append(
                client, caller.keys, self._options, self._origin, batch, self._memory
            )

        appended = caller.call(request, " (the log may have the message all the same)")
        for why in appended.failed.values():
            raise BrokerUnavailable(f"Redis does not accept messages of the room {room!r}: {why}")
        self._refusal_logs[caller].note(appended)

    def _snapshot(self, room: str, begin_log: bool = False) -> Any:
        caller, requests = self._caller(room), self._requests
        age = self._options.expiry if begin_log else 0

        def request(client: redis.Redis) -> Any:
            found = requests.take_snapshot(client, caller.keys, self._origin, room, age)
            return requests.mark_dead(client, caller.keys, found)

        return caller.call(request)


class RemoteRoom:
    """A room of servers, from ``sender[name]``. All calls may block, and raise
    ``BrokerUnavailable`` if Redis is out of reach for ``timeout`` seconds, or refuses."""

    def __init__(self, sender: Sender, name: str) -> None:
        self.name = name
        self._sender = sender

    def send(self, data: str | bytes | bytearray | memoryview | dict[str, Any]) -> None:
        """Sends a message to all members, in all processes: text, bytes, or a dict as JSON. It
        returns when the log has it.

        If Redis was out of reach for ``timeout`` seconds, nobody knows whether the log has the
        message: it may appear there later, but never twice, and never after a message that this
        process sent later.

        Raises:
            TypeError: ``data`` is none of these.
            ValueError: UTF-8 or JSON cannot encode ``data``; or the ``stamp`` raised it.
            BrokerUnavailable: Redis is out of reach, or refuses the message.
        """
        message = arguments.message(data)
        stamp = self._sender.stamp
        if stamp is not None:
            stamp(BEGINNING, message)
        self._sender._append(self.name, message)

    def history(self, count: int = 50) -> list[str | bytes]:
        """The newest messages of the room, oldest first: as members received them if this sender
        has the ``stamp`` of their ``Rooms``, otherwise as they were sent.

        Raises:
            TypeError: ``count`` is not an int.
            BrokerUnavailable: Redis is out of reach.
        """
        arguments.check_count(count)
        sender = self._sender
        if count <= 0:
            return []
        caller = sender._caller(self.name)
        found = list(sender._requests.newest(caller.call, caller.keys, self.name, count))
        stamped: list[str | bytes] = []
        for position, data in reversed(found):
            try:
                stamped.append(data if sender.stamp is None else sender.stamp(position, data))
            except Exception:  # other programs may have put it there
                _logger.exception("a message of the room %r was skipped", self.name)
        return stamped

    @property
    def position(self) -> str:
        """The id of the last message of the room, for a page that is being rendered: a client that
        gives it as ``since`` misses nothing that is sent in between.

        Raises:
            BrokerUnavailable: Redis is out of reach.
        """
        end: str = self._sender._snapshot(self.name, begin_log=True).end
        return end

    @property
    def members(self) -> list[Presence]:
        """Everybody in the room, in all processes.

        Raises:
            BrokerUnavailable: Redis is out of reach.
        """
        return unpack_all(self._sender._snapshot(self.name).alive)

    def __len__(self) -> int:
        return len(self.members)

    def __bool__(self) -> bool:
        return True

    def disconnect(
        self, code: int = 1008, reason: str = "", member: Presence | str | int | None = None
    ) -> None:
        """Closes the members of the room in all processes, or only ``member``: a presence or its
        id. (All members with one ``presence_key`` have the same id.) Each first gets what was sent
        before. Members in a process that has lost its connection to Redis stay connected.

        Raises:
            ValueError: ``code`` may not be sent, ``reason`` is longer than 123 bytes, or ``member``
                is empty.
            BrokerUnavailable: Redis is out of reach.
        """
        arguments.check_close(code, reason)
        key = arguments.member_id(member)
        sender = self._sender
        caller = sender._caller(self.name)
        caller.call(
            lambda client: sender._requests.disconnect(
                client, caller.keys, self.name, code, reason, key
            )
        )

    def __repr__(self) -> str:
        return f"<RemoteRoom {self.name!r}>"


_all: weakref.WeakSet[Sender] = weakref.WeakSet()


def _begin_all() -> None:
    """In a process that was forked."""
    for sender in list(_all):
        sender._begin()
        for caller in sender._callers:
            caller.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all)
