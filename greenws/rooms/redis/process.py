"""What the parts of a broker share in one process; a forked child makes its own."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import gevent
import gevent.event
import redis

from ...hub.switching import thread_id
from ..broker import BrokerUnavailable, Entry, Listener
from . import url
from .clock import RedisClock
from .commands import Commands
from .delays import delays
from .errors import ERRORS
from .keys import Keys
from .options import Options
from .outage import Event, Outage

__all__ = ["Identity", "Link", "Process", "Receipt"]

_T = TypeVar("_T")

# Seconds after each attempt to reach a room whose slot is moving to another node.
_REDIRECT_DELAYS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_FIRST_POLL, _LONGEST_POLL = 0.002, 0.05  # seconds between two checks whether a log has an entry


class Identity:
    """``origin`` names a process among those that use the same Redis; ``numbers`` count what it
    sends; ``receipts``, by number, are of entries whose senders wait. The sender holds the lock
    until the entry has its receipt, and the writer takes entries with the lock held, so that none
    is confirmed before."""

    def __init__(self) -> None:
        self.origin = secrets.token_hex(6)
        self.numbers = itertools.count(1)
        self.receipts: dict[int, Receipt] = {}
        self._last = 0, ""  # the entry published last: its number, and why it is not appended

    def note_published(self, number: int, failure: str = "") -> None:
        """``failure``: why the entry will not be appended. The lock is held."""
        self._last = number, failure

    def receipt(self, hub: Any) -> Receipt:
        """Of the entry that was published just now. ``hub``: of this thread, if the writer runs in
        it; else None. The lock is held."""
        number, failure = self._last
        receipt = Receipt(hub)
        if failure:
            receipt.end(failure)
        else:
            self.receipts[number] = receipt
        return receipt

    def wake_senders(self) -> None:
        """Senders that wait check whether the broker was stopped."""
        for each in list(self.receipts.values()):
            each.wake()

    def abandon(self) -> None:
        """In a forked child: the parent's messages are confirmed in the parent."""
        for each in self.receipts.values():
            each.is_inherited = True


class Receipt:
    """What is known of an entry whose sender waits until the log has it. ``failure``: why Redis
    does not accept it; empty if it does. ``hub``: of the sender; None in a thread whose hub may end
    before the entry is appended, which polls."""

    __slots__ = ("_hub", "_thread", "_wakening", "failure", "is_inherited", "is_known")

    def __init__(self, hub: Any) -> None:
        self.is_known = self.is_inherited = False
        self.failure = ""
        self._hub, self._thread = hub, thread_id()
        self._wakening = None if hub is None else gevent.event.Event()

    def end(self, failure: str = "") -> None:
        self.failure = failure
        self.is_known = True
        self.wake()

    def wake(self) -> None:
        """The sender checks again whether it must wait. Any thread may call it."""
        if self._wakening is None:
            return
        if thread_id() == self._thread:
            self._wakening.set()
        else:
            self._hub.loop.run_callback_threadsafe(self._wakening.set)

    def wait(self, room: str, is_stopped: Callable[[], bool]) -> bool:
        """Returns whether the log has the entry; False if the broker was stopped before. In a
        forked child, a wait that began in the parent never ends: the parent's does.

        Raises:
            BrokerUnavailable: Redis does not accept it.
        """
        interval = _FIRST_POLL
        while not self.is_known:
            if self.is_inherited:
                gevent.event.Event().wait()
            if is_stopped():
                return False
            if self._wakening is not None:
                self._wakening.wait()
                self._wakening.clear()
            else:
                gevent.sleep(interval)
                interval = min(2 * interval, _LONGEST_POLL)
        if self.failure:
            raise BrokerUnavailable(
                f"Redis does not accept messages of the room {room!r}: {self.failure}"
            )
        return True


class Link(Protocol):
    """What a node of a cluster knows of the others."""

    @property
    def identity(self) -> Identity:
        """The identity of this process, the same in all nodes."""

    def redirect(self, error: BaseException) -> bool:
        """Whether an error says that a room has moved or is moving to another node, which is then
        noted. Does not block."""

    def read_map_soon(self) -> None:
        """Reads the map soon: a node has failed, and others may have its rooms. Does not block."""

    def process_of(self, room: str) -> Process:
        """The ``Process`` of the node that has a room."""

    def probe(self, process: Process) -> int:
        """The number of a probe whose key is in the node of ``process``.

        Raises:
            redis.ConnectionError: the node has no keys.
        """

    def prove_alive(self) -> int:
        """Renews this process's key of life; returns how many times it had expired."""

    def dead(self, origins: set[str]) -> set[str]:
        """Those of some processes that are known to be dead."""


class Process:
    """``origin`` names this process among those that use the same Redis. ``link``: None outside of
    a cluster; in a cluster, each node has a ``Process``."""

    def __init__(
        self,
        options: Options,
        listener: Callable[[], Listener | None],
        lost: Callable[[], None],
        back: Callable[[], None],
        failed: Callable[[], None],
        link: Link | None = None,
    ) -> None:
        self.options = options
        self.link = link
        self.identity = Identity() if link is None else link.identity
        self.origin = self.identity.origin
        self.clock = RedisClock()
        self.commands = Commands(options.url, options.timeout, options.is_cluster)
        database = url.database(self.commands.client)
        self.keys = Keys(options.prefix, database, options.is_cluster)
        self.outage = Outage(lost, back, failed, options.name)
        self.is_stopped = False
        self._listener = listener

    def next_number(self) -> int:
        """The number for the next entry that this process sends."""
        return next(self.identity.numbers)

    # -- the listener

    @property
    def lock(self) -> AbstractContextManager[Any]:
        listener = self._listener()
        return nullcontext() if listener is None else listener.lock

    def deliver(self, room: str, entry: Entry) -> None:
        listener = self._listener()
        if listener is not None:
            listener.deliver(room, entry)

    def report_presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        listener = self._listener()
        if listener is not None:
            listener.presence(room, kind, member, info)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        listener = self._listener()
        if listener is not None:
            listener.disconnect(room, code, reason, member)

    def send_gap(self, room: str) -> bool:
        """Sends members the gap; returns whether ``Rooms`` are attached."""
        listener = self._listener()
        if listener is None:
            return False
        listener.gap(room)
        return True

    def wait_for_fan_out(self, room: str) -> None:
        listener = self._listener()
        if listener is not None:
            listener.wait(room)

    # -- commands

    def run_for(self, room: str, call: Callable[[redis.Redis], _T], urgent: bool = False) -> _T:
        """Runs commands for the keys of one room, in the node that has it.

        Raises:
            redis.RedisError, OSError: they failed, or Redis does not answer.
        """
        if self.link is None:
            return self.commands.run(call, urgent)
        for delay in _REDIRECT_DELAYS:
            try:
                return self.link.process_of(room).commands.run(call, urgent)
            except redis.ResponseError as error:
                if not self.link.redirect(error):
                    raise
            gevent.sleep(delay)
        return self.link.process_of(room).commands.run(call, urgent)

    # -- waiting for Redis

    def now(self) -> float:
        """The time, for ``fail``."""
        return time.monotonic()

    def fail(
        self, error: Exception, began: float | None = None, event: Event = Event.WRITE_FAILED
    ) -> None:
        """Reports a failed command, and when it was begun (time.monotonic())."""
        if self.link is not None:
            if self.link.redirect(error):
                return
            self.link.read_map_soon()
        self.outage.fail(event, error, began)

    def insist(
        self,
        call: Callable[[], _T],
        timeout: float,
        current: Callable[[], Process] | None = None,
    ) -> _T | None:
        """Returns what ``call`` returns; None if Redis does not answer, or come back, within
        ``timeout`` seconds. These count from the beginning of an outage, so that all waits for it
        end together. ``current``: returns the ``Process`` to ask, before each attempt."""
        first = time.monotonic()
        for delay in delays(at_once=1):
            began = time.monotonic()
            process = self if current is None else current()
            outage = process.outage
            deadline = (outage.began if outage.is_lost else first) + timeout
            if not (outage.is_lost and process.commands.is_hanging):
                try:
                    return call()
                except ERRORS as error:
                    process.fail(error, began)
                    if outage.is_lost:
                        deadline = min(deadline, outage.began + timeout)
            if process.is_stopped or time.monotonic() + delay >= deadline:
                return None
            gevent.sleep(delay)
        raise AssertionError
