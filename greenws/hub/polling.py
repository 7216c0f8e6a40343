"""Waiting for many sockets: which greenlet runs next, and the buffers that a hub's sockets share.

The sockets of a hub are registered with an epoll instance of ours, and the hub's loop watches its
one descriptor. When that becomes readable, the hub takes a batch of events and switches to the
greenlet of the first. When that greenlet waits again, it switches straight to the next one of the
batch, and the last one switches back to the hub. So a message costs one switch and no callback of
the loop. A batch that takes longer than a turn continues after another poll of the kernel. Events
are edge-triggered: an event that arrives while no greenlet waits is remembered, and a stale event
costs only a read that would block.

A socket that has been the only one for a while (a client's, mostly) is watched by the loop itself,
which saves a system call for each message. It stays registered with our epoll, so that no event is
lost on the way back. As long as its answers come quickly, nothing else keeps the loop alive and no
other thread could call the hub, its greenlet waits for the socket itself (in the compiled form),
without a switch to the hub. Timers that do not keep the loop alive cannot be seen, so the hub runs
every 10 to 20 ms.

Without epoll, each socket has a gevent watcher.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
from typing import Any
from weakref import WeakKeyDictionary

from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub
from gevent.monkey import get_original
from greenlet import GreenletExit

from . import forks, parking, slots, switching, syscalls
from .turns import Turns, after_poll, turns_of

__all__ = [
    "ASLEEP",
    "Cork",
    "EpollPoller",
    "Poller",
    "READABLE",
    "ReceiveBuffer",
    "TlsMemory",
    "Waiter",
    "WatcherPoller",
    "begin_session",
    "begin_visit",
    "current_process",
    "drop_poller",
    "poller_of",
]

# The causes that wake a waiting greenlet; subclasses of Waiter may define more.
# (Names with an underscore are C numbers in the compiled form.)
ASLEEP = _ASLEEP = 0
READABLE = _READABLE = 1

_FOREVER = float("inf")
_RECEIVE_SIZE = 1 << 18  # bytes that one receive takes at most
_CORK_SIZE = 1 << 16  # bytes
_BATCH = 256  # events
_TLS_MARGIN = 1 << 15  # bytes; more than OpenSSL keeps of an incomplete record
_TLS_OUT_SIZE = 1 << 17  # bytes; the cork in records of half a kilobyte, the smallest, fits
_TICK = 0.5  # seconds
_ALONE = 64  # dispatches of a socket that is the only one, before the loop watches it itself
_QUICK = 10  # milliseconds in which such a socket waits without the hub

_new_epoll: Any = None
with contextlib.suppress(AttributeError):  # this system has none
    # monkey.patch_all() takes epoll() out of the module, since it blocks; ours is never waited for.
    _new_epoll = get_original("select", "epoll")

switching.load()
forks.load()
switching.keep_chunks()


class ReceiveBuffer:
    """The memory that all sockets of a hub receive into, so that an idle connection owns none.

    Invariant: what a parser has not consumed yet may stay in ``data`` only while that parser is
    the ``borrower``. Call :meth:`reclaim` before receiving into ``data``.
    """

    def __init__(self) -> None:
        self.data = bytearray(_RECEIVE_SIZE)
        self.borrower: Any = None  # its keep() copies what it still needs

    def reclaim(self) -> None:
        """Makes the borrower copy what it has not consumed, so that ``data`` can be overwritten."""
        if self.borrower is not None:
            self.borrower.keep()
            self.borrower = None


class Cork:
    """The memory in which the sockets of a hub write small frames, so that several frames leave in
    one system call.

    Invariant: the first ``size`` bytes of ``data`` wait to be sent on ``owner``, a socket of the
    hub; without an owner, ``size`` is 0. Call :meth:`flush` before another socket becomes owner.
    """

    def __init__(self) -> None:
        self.data = bytearray(_CORK_SIZE)
        self.size = 0
        self.owner: Waiter | None = None
        self.flushed_by_batch = False
        """Whether a batch of events is running, which flushes the cork itself."""

    def flush(self) -> None:
        """Sends what is held back."""
        owner = self.owner  # a reference of our own: flushing removes the cork's
        if owner is not None:
            owner.flush()

    def flush_soon(self) -> None:
        """Makes the hub flush the cork as soon as it gets control."""
        if not self.flushed_by_batch and self.owner is not None:
            self.owner.hub.loop.run_callback(self._on_control)

    def _on_control(self) -> None:
        self.flush()


class TlsMemory:
    """The memory between the sockets of a hub and TLS. Nothing stays in it."""

    def __init__(self) -> None:
        # What is decrypted must fit into the receive buffer.
        self.sealed = bytearray(_RECEIVE_SIZE - _TLS_MARGIN)
        self.out = bytearray(_TLS_OUT_SIZE)
        self.ends: list[str] = []


class Poller:
    """The objects that the sockets of a hub share. It must not refer to the hub, which would never
    be freed then."""

    def __init__(self, turns: Turns | None = None) -> None:
        self.process = forks.process()
        self.writers: set[Waiter] = set()
        """The sockets that the loop watches because they have output left."""
        self.receive_buffer = ReceiveBuffer()
        self.cork = Cork()
        self.tls: Any = None  # a TlsMemory, from the first TLS connection on
        self.turns = turns or Turns()
        self.ticks = 0
        """A coarse clock, in half seconds. It runs while any socket is open."""
        self._watched = 0
        self._ticker: Any = None

    def add(self, waiter: Waiter) -> None:
        """Starts to watch a socket."""
        if self._watched == 0:
            self._open(waiter.hub.loop)
        self._watched += 1

    def remove(self, waiter: Waiter, closing: bool) -> None:
        """Stops watching a socket. Call it before the socket is closed. ``closing``: whether that
        follows at once."""
        self._watched -= 1
        if self._watched == 0:
            self._close()

    def switch(self, waiter: Waiter) -> None:
        """Gives control to the next greenlet. May return although nothing woke this one."""
        switching.switch(waiter.hub)

    def close(self) -> None:
        """Frees what belongs to the poller. No socket may be left."""

    def disown(self) -> None:
        """In a forked child: stops the poller's watchers. Changes nothing in the kernel that the
        parent shares."""
        if self._ticker is not None:
            Poller._close(self)
        self.cork.owner = None
        self.cork.size = 0
        for writer in list(self.writers):
            writer.disown()

    def _open(self, loop: Any) -> None:
        self._ticker = loop.timer(_TICK, _TICK, ref=False)
        self._ticker.start(self._tick)

    def _close(self) -> None:
        self._ticker.close()
        self._ticker = None

    def _tick(self) -> None:
        self.ticks += 1


class EpollPoller(Poller):
    """Polls with an epoll instance, whose descriptor the hub's loop watches."""

    def __init__(self, turns: Turns | None = None) -> None:
        super().__init__(turns)
        self._epoll = _new_epoll()
        self._fileno = self._epoll.fileno()
        self._mask = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
        self._watcher: Any = None
        self._waiters: list[Waiter | None] = []  # by descriptor
        # the batch
        self._events = syscalls.new_events(_BATCH)
        self._count = 0
        self._next_event = 0
        # the rest of the batch, when a turn is over
        self._rest_count = 0
        self._rest = 0
        self._rest_timer: Any = None
        self.lone: Waiter | None = None
        """The only socket, while the loop watches it itself."""
        self._lone_watcher: Any = None
        self._lone_loop: Any = None  # libev's, or None
        self._runs_lone = False  # whether the hub is in _on_lone()
        self._hub_due = 0  # nanoseconds; until then that socket is waited for without the hub
        self._alone = 0  # dispatches since there is only one socket

    def add(self, waiter: Waiter) -> None:
        Poller.add(self, waiter)
        self._stop_lone()
        fileno = waiter.fileno
        if fileno >= len(self._waiters):
            self._waiters.extend([None] * (fileno + 64 - len(self._waiters)))
        self._waiters[fileno] = waiter
        try:
            syscalls.watch(self._epoll, self._fileno, fileno, self._mask)
        except BaseException:  # for example, beyond the system's limit for one user
            self._waiters[fileno] = None
            Poller.remove(self, waiter, True)
            raise

    def remove(self, waiter: Waiter, closing: bool) -> None:
        self._stop_lone()
        if self._waiters[waiter.fileno] is waiter:  # the descriptor may be another socket's by now
            self._waiters[waiter.fileno] = None
        # The kernel drops a descriptor that is closed. If another process still has the socket, its
        # events are stale: they find no waiter, or cost one a read.
        if not closing:
            self._epoll.unregister(waiter.fileno)
        Poller.remove(self, waiter, closing)

    def close(self) -> None:
        self._epoll.close()

    def disown(self) -> None:
        Poller.disown(self)
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self.lone is not None:
            self._close_lone()
        self._count = self._next_event = self._rest_count = self._rest = 0
        self._waiters = []
        self._epoll.close()  # the child's descriptor; the instance is the parent's

    def switch(self, waiter: Waiter) -> None:
        next_waiter = self._next_waiter()
        if next_waiter is None:
            if waiter is self.lone and self._runs_lone:
                self._wait_alone(waiter)
            else:
                switching.switch(waiter.hub)
        elif next_waiter is not waiter:
            switching.switch(next_waiter.greenlet)

    def _wait_alone(self, waiter: Waiter) -> None:
        """:meth:`switch` for the only socket."""
        now = syscalls.clock()
        if now >= self._hub_due or not self._is_loop_idle(waiter, now):
            switching.switch(waiter.hub)
            end = syscalls.clock()
            was_quick = end - now < _QUICK * 1_000_000
            self._hub_due = (
                end + _QUICK * 1_000_000 if was_quick and _is_only_thread(waiter.hub) else 0
            )
        elif syscalls.wait_readable(waiter.fileno, _QUICK):
            waiter.woken_by = _READABLE
            self._lone_loop.update_now()  # for timers that start before the loop runs again
            self.turns.renew()
        else:
            self._hub_due = 0
            switching.switch(waiter.hub)

    def _is_loop_idle(self, waiter: Waiter, now: int) -> bool:
        """Whether the loop has no callbacks, and nothing but the only socket and its timer, which
        is not due soon, keeps it alive."""
        loop = self._lone_loop
        # Timers that have expired are pending, and do not count as active any more.
        if loop is not waiter.hub.loop or loop.pendingcnt:
            return False
        active: int = loop.activecnt
        if waiter.timer_due == _FOREVER:
            return active == 1
        return active == 2 and now * 1e-9 + _QUICK * 1e-3 < waiter.timer_due

    def _next_waiter(self) -> Waiter | None:
        """The next socket of the batch that a greenlet waits for; the caller must switch to it."""
        if self.process != forks.process():
            return None
        turns = self.turns
        while self._next_event < self._count:
            turns.steps -= 1
            if turns.steps <= 0 and turns.is_over(None):
                return None
            index = self._next_event
            self._next_event = index + 1
            waiter = slots.waiter_at(self._waiters, syscalls.event_fd(self._events, index))
            if waiter is not None:
                if syscalls.event_hung_up(self._events, index):
                    waiter.hung_up = True
                if waiter.greenlet is None:
                    waiter.pending = True
                elif waiter.woken_by == _ASLEEP:
                    waiter.woken_by = _READABLE
                    if switching.PREFETCHES:
                        self._prefetch()
                    return waiter
        return None

    def _prefetch(self) -> None:
        """Loads what the next three sockets need into the processor's cache while this one runs.

        Each step follows pointers that the step before has loaded. With a thousand connections,
        hardly anything of a given one is cached.
        """
        waiters, events, first = self._waiters, self._events, self._next_event
        left = self._count - first
        if left > 2:
            waiter = slots.waiter_at(waiters, syscalls.event_fd(events, first + 2))
            if waiter is not None:
                switching.prefetch_object(waiter)
        if left > 1:
            waiter = slots.waiter_at(waiters, syscalls.event_fd(events, first + 1))
            if waiter is not None:
                switching.prefetch_object(waiter.greenlet)
                switching.prefetch_at(waiter._prefetch1)
                switching.prefetch_at(waiter._prefetch2)
                switching.prefetch_at(waiter._prefetch3)
                switching.prefetch_at(waiter._prefetch4)
        if left > 0:
            waiter = slots.waiter_at(waiters, syscalls.event_fd(events, first))
            if waiter is not None and waiter.greenlet is not None:
                switching.prefetch_state(waiter.greenlet)

    def _dispatch(self) -> None:
        """In the hub: runs every greenlet whose socket is readable."""
        if self.process != forks.process():
            self.disown()
            return
        if self._rest_count:
            self._count, self._next_event = self._rest_count, self._rest
            self._rest_count = 0
        else:
            self._count = syscalls.take_events(self._epoll, self._fileno, self._events, _BATCH)
            self._next_event = 0
            if self._watched == self._count == 1:
                self._alone += 1
        self.cork.flushed_by_batch = True
        self.turns.begin()
        try:
            while True:
                waiter = self._next_waiter()
                if waiter is None:
                    break
                self._run(waiter.greenlet)
        finally:
            self.cork.flushed_by_batch = False
            self.turns.leave()
            if self._next_event < self._count:
                self._keep_rest()
        if self._alone >= _ALONE and self._count == 1:
            self._start_lone()

    def _start_lone(self) -> None:
        """Makes the loop watch the only socket itself, instead of our epoll."""
        waiter = self._waiters[syscalls.event_fd(self._events, 0)]
        if self.lone is None and waiter is not None:
            self.lone = waiter
            loop = waiter.hub.loop
            self._lone_watcher = loop.io(waiter.fileno, 1)
            self._lone_watcher.start(self._on_lone)
            self._watcher.stop()
            self._lone_loop = loop if syscalls.ENDS_WAITS and _is_libevs(loop) else None
            self._hub_due = 0

    def _stop_lone(self) -> None:
        """Goes back to our epoll, which has noticed each event since."""
        self._alone = 0
        if self.lone is not None:
            self._close_lone()
            self._watcher.start(self._dispatch)

    def _close_lone(self) -> None:
        self._lone_watcher.close()
        self.lone = self._lone_watcher = self._lone_loop = None

    def _on_lone(self) -> None:
        """In the hub: runs the greenlet of the only socket, which is readable."""
        if self.process != forks.process():
            self.disown()
            return
        waiter = self.lone
        if waiter is None or waiter.greenlet is None or waiter.woken_by != _ASLEEP:
            self._stop_lone()  # otherwise the loop would report it again and again
            return
        waiter.woken_by = _READABLE
        self._runs_lone = self._lone_loop is not None
        self.cork.flushed_by_batch = True
        self.turns.begin()
        try:
            self._run(waiter.greenlet)
        finally:
            self._runs_lone = False
            self.cork.flushed_by_batch = False
            self.turns.leave()

    def _keep_rest(self) -> None:
        """Makes the hub run the rest of the batch after the next poll."""
        if self._watcher is None:  # every socket is closed
            self._count = self._next_event = 0
            return
        self._rest_count, self._rest = self._count, self._next_event
        self._count = self._next_event = 0
        if self._rest_timer is not None:
            self._rest_timer.close()
        hub: Any = switching.current()
        self._rest_timer = after_poll(hub.loop, self._dispatch)

    def _run(self, greenlet: Any) -> None:
        hub: Any = switching.current()
        try:
            switching.switch(greenlet)
        except GreenletExit:  # the hub itself must exit
            raise
        except BaseException as error:  # a raw greenlet, whose parent is the hub, has failed
            hub.handle_error(greenlet, type(error), error, error.__traceback__)
        try:
            self.cork.flush()
        except Exception as error:  # for example, MemoryError
            hub.handle_error(self, type(error), error, error.__traceback__)

    def _open(self, loop: Any) -> None:
        Poller._open(self, loop)
        self._watcher = loop.io(self._fileno, 1)
        self._watcher.start(self._dispatch)

    def _close(self) -> None:
        Poller._close(self)
        self._watcher.close()
        self._watcher = None
        self._rest_count = 0
        if self._rest_timer is not None:
            self._rest_timer.close()
            self._rest_timer = None


class WatcherPoller(Poller):
    """Polls with a gevent watcher for each socket."""

    def __init__(self, turns: Turns | None = None) -> None:
        super().__init__(turns)
        self._waiters: set[Waiter] = set()

    def add(self, waiter: Waiter) -> None:
        Poller.add(self, waiter)
        self._waiters.add(waiter)
        waiter.watcher = waiter.hub.loop.io(waiter.fileno, 1)
        waiter.watcher.start(waiter.on_readable)

    def remove(self, waiter: Waiter, closing: bool) -> None:
        self._waiters.discard(waiter)
        waiter.watcher.close()
        waiter.watcher = None
        Poller.remove(self, waiter, closing)

    def disown(self) -> None:
        Poller.disown(self)
        for waiter in self._waiters:
            waiter.watcher.stop()
        self._waiters.clear()


class Waiter:
    """A socket on whose input one greenlet at a time can wait."""

    def __init__(self, hub: Hub, fileno: int) -> None:
        self._begin(hub, fileno)

    def _begin(self, hub: Hub, fileno: int) -> None:
        """The constructor, for those of compiled classes: ``super()`` takes as long as all this."""
        self.process = forks.process()
        self.hub = hub
        self.fileno = fileno
        self.poller = poller_of(hub)
        self.greenlet: Any = None  # the one that waits
        self.woken_by = _ASLEEP
        self.pending = False  # it became readable while no greenlet waited
        self.hung_up = False  # the peer has ended its stream, or the connection is lost
        self.watched = False
        self.watcher: Any = None
        self.timer_due = _FOREVER  # of its timer, if one runs; a time of time.monotonic()
        self._prefetch1 = self._prefetch2 = self._prefetch3 = self._prefetch4 = 0

    def set_prefetch(self, first: object, second: object, third: object, fourth: object) -> None:
        """Names four objects that the greenlet uses when it wakes. Takes no references."""
        self._prefetch1 = id(first)
        self._prefetch2 = id(second)
        self._prefetch3 = id(third)
        self._prefetch4 = id(fourth)

    def watch(self) -> None:
        """Starts to watch the socket, if it is not watched already. :meth:`wait` does this, too.
        Does nothing in a forked child."""
        if not self.watched and self.process == forks.process():
            self.poller.add(self)
            self.watched = True

    def wait(self) -> int:
        """Blocks this greenlet until the socket is readable or :meth:`wake` is called; returns the
        cause. READABLE may be stale: the next read may still block. In a forked child it always
        is, and does not block."""
        if self.pending or self.process != forks.process():
            self.pending = False
            return _READABLE
        if not self.watched:
            self.watch()
        elif self.watcher is not None and not self.watcher.active:
            self.watcher.start(self.on_readable)
        self.woken_by = _ASLEEP
        greenlet = switching.current()
        if greenlet is self.hub:
            raise BlockingSwitchOutError("cannot wait for a socket in a callback of the event loop")
        self.greenlet = greenlet
        try:
            while self.woken_by == _ASLEEP:
                self.poller.switch(self)
        finally:
            self.greenlet = None
        return self.woken_by

    def wake(self, cause: int) -> None:
        """In the hub: runs the waiting greenlet, if there is one."""
        waiting = self.greenlet is not None and self.woken_by == _ASLEEP
        if waiting and self.process == forks.process():
            self.woken_by = cause
            switching.switch(self.greenlet)

    def wake_soon(self) -> None:
        """Makes the hub run the waiting greenlet, as if the socket were readable."""
        self.hub.loop.run_callback(self._on_turn)

    def _on_turn(self) -> None:
        self.wake(_READABLE)

    def on_readable(self) -> None:
        """In the hub: the callback of a watcher."""
        if self.process != forks.process():
            self.watcher.stop()
        elif self.greenlet is None:
            self.pending = True
            self.watcher.stop()
        else:
            self.wake(_READABLE)

    def unwatch(self, closing: bool = False) -> None:
        """Stops watching the socket. Call it before the descriptor is closed. ``closing``: whether
        that follows at once."""
        if self.watched:
            self.watched = False
            if self.process == forks.process():
                self.poller.remove(self, closing)
            elif self.watcher is not None:
                self.watcher.close()

    def disown(self) -> None:
        """In a forked child: gives up what belongs to the parent."""
        self.unwatch()

    def flush(self) -> None:
        """Sends what the cork holds back for this socket."""


_count_threads = get_original("_thread", "_count")  # those that Python has started


def _is_only_thread(hub: Any) -> bool:
    """Whether no other thread of Python's could call this one's hub: the loop reports such a call
    only while it waits itself. The threads of the hub's own pool keep the loop alive as they run
    something."""
    count: int = _count_threads()
    if count:
        pool = hub._threadpool
        if pool is not None:
            count -= pool.size
    return count == 0


_ATTRIBUTE = "_greenws_poller"  # of a hub

_pollers: WeakKeyDictionary[Hub, Poller] = WeakKeyDictionary()


def _is_libevs(loop: Any) -> bool:
    return type(loop).__module__.startswith("gevent.libev")


def _before_fork() -> None:
    """In the parent: makes libev replace its epoll instance before its next poll, in both
    processes. Otherwise the child would change the parent's instance if an earlier hook ran the hub
    there: libev looks for a fork only at the start of an iteration, and may be in the middle of
    one."""
    hub = get_hub_if_exists()
    if hub is not None and _is_libevs(hub.loop):
        hub.loop.reinit()


def _after_fork() -> None:
    """In the child: drops the parent's poller, but keeps one that an earlier hook made here."""
    hub = get_hub_if_exists()
    if hub is not None:
        hub.loop.reinit()
    for hub, poller in list(_pollers.items()):
        if poller.process != forks.process():
            del _pollers[hub]
            poller.disown()


@atexit.register
def _at_exit() -> None:
    parking.park([hub for hub in (each() for each in _pollers.keyrefs()) if hub is not None])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def begin_session(greenlet: Any) -> Any:
    """Returns what ``greenlet`` runs: ``_admit`` of its first argument, a server. A new greenlet
    reads this as a property before any Python runs in it, in time to give it a smaller stack of
    frames."""
    # Its constructor asks whether this can be called; without C modules, before it sets ``args``.
    if not getattr(greenlet, "args", None):
        return begin_session
    switching.use_small_chunk()
    return type(greenlet.args[0])._admit


def begin_visit(greenlet: Any) -> Any:
    """:func:`begin_session` for ``_visit``."""
    if not getattr(greenlet, "args", None):
        return begin_visit
    switching.use_small_chunk()
    return type(greenlet.args[0])._visit


def current_process() -> int:
    """``forks.process()``, for modules that are never compiled."""
    return forks.process()


def poller_of(hub: Hub) -> Poller:
    """The poller of ``hub``, made at first use."""
    # The attribute saves a look-up in Python code.
    poller: Poller | None = getattr(hub, _ATTRIBUTE, None)
    if poller is not None and poller.process != forks.process():
        poller.disown()
        poller = None
    if poller is None:
        kind = WatcherPoller if _new_epoll is None else EpollPoller
        poller = _pollers[hub] = kind(turns_of(hub))
        setattr(hub, _ATTRIBUTE, poller)
        parking.prepare()
    return poller


def drop_poller(hub: Hub) -> None:
    """Closes the poller of ``hub``. Call it before the hub is destroyed: gevent may keep a
    reference to the hub of a thread that has ended."""
    poller = _pollers.pop(hub, None)
    setattr(hub, _ATTRIBUTE, None)
    if poller is not None:
        poller.close()
