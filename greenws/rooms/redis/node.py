"""``Node``: one Redis. The log of a room is a Redis Stream, which all processes with members read.

There are two connections: one for commands (``commands.py``), and one that is subscribed to the
open rooms (``listener.py``). Messages wait in ``writer.py`` until their log has them. ``leases.py``
keeps who is in a room, ``outage.py`` whether Redis is in reach, and ``history.py`` reads what
members have missed.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import gevent
from gevent.event import Event
from gevent.resolver.blocking import Resolver as BlockingResolver
from gevent.resolver.thread import Resolver as ThreadResolver

from ...hub.switching import thread_id
from .. import turns
from ..broker import Broker, BrokerUnavailable, Message, Replay
from . import outage, url
from .delays import FIRST_DELAY, delays
from .entries import LogEntry
from .errors import ERRORS, is_redirect, must_be_left
from .history import History
from .leases import Leases, MovedLeases
from .listener import Subscriber
from .options import Options
from .origins import GRACE, Gone
from .positions import order
from .process import Link, Process
from .requests import AFTER_ALL, PERHAPS_AFTER_ALL, Snapshot, disconnect
from .stream import Stream
from .writer import Writer

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["MovedRoom", "Node"]

_T = TypeVar("_T")

_FLUSH_POLL_INTERVAL = 0.005  # seconds between two checks whether all is in the log
_FOLLOW_INTERVAL = 0.5  # seconds between two questions to the sentinels

_logger = logging.getLogger("greenws.brokers.redis")


class Node(Broker):
    """The rooms whose logs one Redis holds. ``link``: the other nodes, in a cluster."""

    def __init__(self, options: Options, link: Link | None = None) -> None:
        self._options = options
        self._link = link
        self.tail_length, self.tail_age = options.history, options.max_age
        self._is_started = False  # in this process
        self._is_stopped = False
        self._greenlets: list[gevent.Greenlet[[Callable[[], None]], None]] = []
        self._settle()
        self._begin()
        _all.add(self)

    # -- beginning and end

    def _settle(self) -> None:
        """Chooses the hub whose greenlets do the work: that of the thread that made the broker, or
        that joins rooms."""
        self._hub = gevent.get_hub()
        self._thread = thread_id()

    def start(self) -> None:
        """Connects to Redis."""
        if self._is_stopped:
            raise BrokerUnavailable("these rooms were closed")
        if self.process.commands.refused is not None:
            raise self.process.commands.refused
        if self._is_started:
            return
        with (
            nullcontext() if self._listener is None else self._listener.lock
        ):  # another thread may be doing this
            if not self._is_started:
                self._is_started = True
                self._in_hub(self._spawn)

    def _begin(self) -> None:
        """Called in each process, after a fork too."""
        self._wake_writer, self._wake_leases = Event(), Event()
        wake_writer = self._waking(self._wake_writer)
        process = Process(
            self._options, lambda: self._listener, self._lost, self._back, wake_writer, self._link
        )
        self.origin = process.origin  # names this process among those that use the same Redis
        self.process = process
        self._streams: dict[str, Stream] = {}
        self._writer = Writer(process, self._streams, wake_writer)
        gone = Gone(process.origin, self._options.expiry + GRACE, lambda: process.lock)
        self._leases = Leases(process, self._waking(self._wake_leases), gone)
        self._subscriber = Subscriber(process, self._streams, self._leases)
        link = self._link
        process_of = (lambda room: process) if link is None else link.process_of
        self._history = History(process.origin, process_of, self._streams, gone)

    def _waking(self, event: Event) -> Callable[[], None]:
        return lambda: self._in_hub(event.set)

    def _spawn(self) -> None:
        loops = [self._write, self._lease, self._subscriber.subscribe, self._subscriber.read]
        if url.parse(self._options.url).kind == url.SENTINEL:
            loops.append(self._follow)
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
        """In a forked child: drops what belongs to the parent."""
        self._is_started = False
        self._settle()
        for greenlet in self._greenlets:
            greenlet.kill(block=False)
        self._greenlets = []
        self.process.identity.abandon()
        self._begin()

    def flush(self, timeout: float | None = None) -> bool:
        if not self._is_started:
            return True
        last = self._writer.last_number()
        joined = {(room, member) for room, each in self._leases.pending.items() for member in each}
        deadline = None if timeout is None else time.monotonic() + timeout

        def is_done() -> bool:
            pending = self._leases.pending
            is_withdrawn = not any(member in pending.get(room, ()) for room, member in joined)
            return is_withdrawn and not self._writer.holds(last)

        commands = self.process.commands
        while not is_done() and not self._is_stopped and commands.refused is None:
            if deadline is not None and time.monotonic() >= deadline:
                break
            gevent.sleep(_FLUSH_POLL_INTERVAL)  # an Event belongs to one thread
        return is_done()

    def stop(self) -> None:
        self.end_greenlets()
        self.process.commands.close()
        self._subscriber.disconnect()

    def end_greenlets(self) -> None:
        if not self._is_stopped:
            self._is_stopped = self.process.is_stopped = True
            self.process.identity.wake_senders()
            if self._is_started:
                self._report_lost()
            gevent.killall(self._greenlets)
        else:
            gevent.joinall(self._greenlets)  # another call may still be ending them
        self._greenlets.clear()

    def _end(self, since: float) -> None:
        """Called when the program ends, which has waited for other brokers since ``since``."""
        if not self._is_started or self._is_stopped:
            return
        waiting, is_lost = len(self._writer.unsent), self.process.outage.is_lost
        if waiting and is_lost:  # logged now, since the wait may be interrupted
            _logger.warning(
                "%d messages wait for Redis; the program ends when they are sent, or in %.3g s",
                *(waiting, self._options.timeout),
            )
        if waiting or not is_lost:
            self.flush(since + self._options.timeout - time.monotonic())
        self._report_lost()

    def _report_lost(self) -> None:
        if self._writer.unsent:
            _logger.error("%d messages that waited for Redis are lost", len(self._writer.unsent))

    @property
    def is_used(self) -> bool:
        return bool(self._streams or self._writer.unsent or self._leases.pending)

    # -- in a cluster: rooms that another node has now

    def rooms(self) -> set[str]:
        """The rooms with state in this node, except those that are being opened."""
        opening = {room for room, stream in self._streams.items() if not stream.opened.is_set()}
        waiting = {room for room, _ in self._writer.unsent}
        return {*self._streams, *waiting, *self._leases.pending} - opening

    def release(self, room: str) -> MovedRoom:
        """Removes the state of a room, for another node; returns it. The lock is held."""
        stream = self._streams.pop(room, None)
        if stream is not None:
            self._subscriber.change(room, self._in_hub)
        return MovedRoom(stream, self._writer.release(room), self._leases.release(room))

    def adopt(self, room: str, moved: MovedRoom) -> None:
        """Takes the state of a room over. The lock is held."""
        stream = moved.stream
        if stream is not None:
            stream.process = self.process
            self._streams[room] = stream
            if self.process.outage.is_lost:
                stream.deliver_all_unlogged()
            self._subscriber.change(room, self._in_hub)
        self._leases.adopt(room, moved.leases)
        self._writer.adopt(moved.waiting)

    # -- rooms

    def open(self, room: str) -> None:
        if not self._is_started:
            self._settle()
        self.start()
        stream = self._streams.get(room)
        if stream is None:
            stream = self._add_stream(room)
            try:
                self._open(stream)
            except BaseException:
                stream.has_failed = True
                del self._streams[room]
                raise
            finally:
                stream.opened.set()
                self._subscriber.change(room, self._in_hub)
            return
        stream.openers += 1
        is_waiting = not stream.opened.is_set()
        try:
            stream.opened.wait()
            if is_waiting:  # all who wait wake in one turn
                turns.end_if_over(in_queue=True)
        except BaseException:
            if self._streams.get(room) is stream:
                self.close(room)
            raise
        if stream.has_failed:  # the greenlet that opened it was killed
            self.open(room)

    def _add_stream(self, room: str) -> Stream:
        process = self.process
        with process.lock:
            stream = self._streams[room] = Stream(room, process)
            # Messages that are published from now on are added to these.
            stream.sent.extend(entry for name, entry in self._writer.unsent if name == room)
            if stream.sent:
                age = time.monotonic() - process.outage.began + self._options.timeout
                stream.unread_since = process.clock.local() - age
        return stream

    def _open(self, stream: Stream) -> None:
        process = self.process
        snapshot: Snapshot | None = None
        if process.outage.is_answered:
            began = time.monotonic()
            try:
                snapshot = self._leases.snapshot(stream.room, begin_log=True)
            except ERRORS as error:
                process.fail(error, began)
        # The id must come after all of our entries that Redis has, whatever this machine's clock
        # says, and before an entry that is added in the same millisecond.
        now = process.clock.now() if snapshot is None else snapshot.now
        count = AFTER_ALL if process.clock.is_known else PERHAPS_AFTER_ALL
        empty = max(f"{now - 1}-{count}", self._writer.last_added if not snapshot else "", key=_key)
        with process.lock:
            self._leases.open(stream.room, snapshot)
            if snapshot is not None and snapshot.id:
                stream.begin(snapshot.id, is_floor=snapshot.id == snapshot.floor)
                stream.floor = snapshot.floor
            else:
                stream.begin(empty, is_estimated=True)
            if snapshot is not None:
                stream.forget_found(snapshot.ours)
            if process.outage.is_lost and stream.sent:
                stream.unlogged = stream.sent[-1].number

    def close(self, room: str) -> bool:
        stream = self._streams[room]
        stream.openers -= 1
        if stream.openers:
            return False
        del self._streams[room]
        self._leases.close(room)
        self._subscriber.change(room, self._in_hub)
        return True

    def position(self, room: str) -> str:
        return self._streams[room].position

    # -- messages

    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        self.start()
        self._writer.publish(room, data, exclude)

    def receipt(self, room: str) -> Callable[[], bool]:
        hub = self._hub if thread_id() == self._thread else None
        return partial(self.process.identity.receipt(hub).wait, room, self._is_over)

    def _is_over(self) -> bool:
        """Whether nothing more is appended.

        Raises:
            WrongScheme: this Redis must not be used.
        """
        if self.process.commands.refused is not None:
            raise self.process.commands.refused
        return self._is_stopped

    def resume(self, room: str, since: str) -> Replay:
        return self._history.resume(room, since)

    def newest(self, room: str, count: int) -> list[Message]:
        self.start()
        return self._history.newest(room, count)

    # -- presence

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        self._leases.join(room, member, info)

    def leave(self, room: str, member: str) -> None:
        if not self._is_stopped:
            self._leases.leave(room, member)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        return self._leases.others(room)

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        self.start()
        began = time.monotonic()
        try:
            found = self._leases.snapshot(room).alive
        except ERRORS as error:
            self.process.fail(error, began)
            return {}
        return found

    # -- reach

    def end_of(self, room: str) -> str:
        self.start()
        return self._ask(lambda: self._leases.snapshot(room, begin_log=True)).end

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        self.start()
        self.flush(self._options.timeout)  # earlier messages must come first
        process = self.process
        self._ask(
            lambda: process.run_for(
                room,
                lambda client: disconnect(client, process.keys, room, code, reason, member),
                urgent=True,
            )
        )

    def _ask(self, call: Callable[[], _T]) -> _T:
        began = time.monotonic()
        try:
            return call()
        except ERRORS as error:
            self.process.fail(error, began)
            raise BrokerUnavailable(f"Redis is out of reach: {error}") from error

    # -- greenlets

    def _write(self) -> None:
        state = self.process.outage
        pauses = delays()
        while True:
            if self._writer.unsent:
                self._writer.give_way()
            elif state.is_writable:
                self._wake_writer.wait()
            self._wake_writer.clear()
            began = time.monotonic()
            try:
                if not state.is_writable:
                    self._leases.prove_alive()
                self._writer.append()
            except Exception as error:
                self.process.fail(error, began)
                if self.process.commands.refused is not None:
                    self.process.identity.wake_senders()
                if must_be_left(error):
                    self._subscriber.disconnect()
                if is_redirect(error):
                    gevent.sleep(FIRST_DELAY)
                    continue
                gevent.sleep(next(pauses))
            else:
                pauses = delays()
                state.succeed(outage.Event.WRITTEN)

    def _lease(self) -> None:
        pauses = delays()
        while True:
            self._wake_leases.wait(max(0.0, self._leases.next_beat - time.monotonic()))
            self._wake_leases.clear()
            if not self.process.outage.is_writable:
                gevent.sleep(FIRST_DELAY)  # until the writer has reconnected
                self._wake_leases.set()
                continue
            began = time.monotonic()
            try:
                self._leases.work()
            except Exception as error:
                self.process.fail(error, began)
                gevent.sleep(next(pauses))
                self._wake_leases.set()
            else:
                pauses = delays()

    def _follow(self) -> None:
        """Leaves a master when the sentinels name another one. The old one may not know yet, and
        would accept messages that are lost later."""
        known: url.Host | None = None
        while True:
            with suppress(*ERRORS):
                master = url.ask_for_master(self.process.commands.client)
                if known is not None and master != known:
                    self.process.commands.disconnect()
                    self._subscriber.disconnect()
                known = master
            gevent.sleep(_FOLLOW_INTERVAL)

    def _lost(self) -> None:
        if self._is_stopped:
            return
        with self.process.lock:  # so that nothing overtakes what is delivered unlogged
            for stream in list(self._streams.values()):
                stream.deliver_all_unlogged()

    def _back(self) -> None:
        self._leases.come_back()


class MovedRoom(NamedTuple):
    """The state of a room that moves from one node of a cluster to another."""

    stream: Stream | None
    waiting: list[tuple[str, LogEntry]]
    leases: MovedLeases


def _key(id_: str) -> tuple[int, int]:
    return order(id_ or "0-0")


_all: weakref.WeakSet[Node] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    now = time.monotonic()
    brokers = list(_all)
    if brokers and sys.version_info[:2] == (3, 12):
        _resolve_without_threads()
    for broker in brokers:
        broker._end(now)


def _resolve_without_threads() -> None:
    """CPython 3.12 starts no thread once it runs the functions of atexit, and gevent's default
    resolver starts its first when a program that has sent and ends at once connects to Redis."""
    hub: Any = gevent.get_hub()
    if type(hub.resolver) is ThreadResolver:
        hub.resolver = BlockingResolver()


def _abandon_all() -> None:
    for broker in list(_all):
        broker._abandon()


os.register_at_fork(after_in_child=_abandon_all)
