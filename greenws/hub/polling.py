"""Waiting for many sockets: whose turn is next.

The sockets of a hub stand in an epoll of their own, of which the hub's loop knows one descriptor.
When that is readable the hub takes a batch of events and switches to the first greenlet; and that
one, when it comes to wait again, switches straight to the next of the batch, and only the last back
to the hub. So a message costs one switch and no callback of the loop. Events are edges: one that
comes while nobody waits is remembered, and asking the kernel once too often is the only harm of a
stale one.

Where there is no epoll, each socket has a watcher of gevent's.
"""

from __future__ import annotations

import os
import select
from typing import Any
from weakref import WeakKeyDictionary

from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub
from greenlet import GreenletExit

from . import switching, syscalls

__all__ = [
    "ASLEEP",
    "EpollPoller",
    "Poller",
    "READABLE",
    "Waiter",
    "WatcherPoller",
    "drop_poller",
    "poller_of",
]

# what a waiting greenlet is woken by; a Waiter's owner may add its own
# (the names with an underscore are C numbers where this is compiled)
ASLEEP = _ASLEEP = 0
READABLE = _READABLE = 1

_BUFFER_SIZE = 1 << 18  # bytes that one receive takes at most
_CORK_SIZE = 1 << 16  # bytes that may be held back
_BATCH = 256  # events
_TICK = 0.5  # seconds
_OBJECT = 256  # bytes; what an object that belongs to a socket takes, about

switching.load()
switching.keep_chunks()


class Poller:
    """What the sockets of a hub share. It does not know the hub, which could not end then."""

    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER_SIZE)
        """What is received. Whoever reads into it first asks the borrower to keep its rest."""
        self.borrower: Any = None
        self.cork = bytearray(_CORK_SIZE)
        """What is held back: ``held`` bytes of the socket ``corked``."""
        self.held = 0
        self.corked: Waiter | None = None
        self.ticks = 0
        """Half seconds, while any socket is open: the time for those who need no better clock."""
        self.dispatching = False
        self._users = 0
        self._ticker: Any = None

    def add(self, waiter: Waiter) -> None:
        """Watches a socket."""
        if self._users == 0:
            self._open(waiter.hub.loop)
        self._users += 1

    def remove(self, waiter: Waiter) -> None:
        """Forgets a socket, before it is closed."""
        self._users -= 1
        if self._users == 0:
            self._close()

    def switch(self, waiter: Waiter) -> None:
        """Gives control to whoever is next; returns when this greenlet is, or in vain."""
        switching.switch(waiter.hub)

    def uncork(self) -> None:
        """Sends what is held back."""
        corked = self.corked  # which may have no other reference, and lets go of this one
        if corked is not None:
            corked.flush()

    def uncork_soon(self) -> None:
        """Sends what is held back as soon as the hub gets control."""
        if not self.dispatching and self.corked is not None:  # otherwise the batch does it
            self.corked.hub.loop.run_callback(self._on_control)

    def _on_control(self) -> None:
        self.uncork()

    def close(self) -> None:
        """No socket of the hub is left, and none will come."""

    def after_fork(self) -> None:
        """In the child: what the kernel would share with the parent is made anew."""

    def _open(self, loop: Any) -> None:
        self._ticker = loop.timer(_TICK, _TICK, ref=False)
        self._ticker.start(self._tick)

    def _close(self) -> None:
        self._ticker.close()
        self._ticker = None

    def _tick(self) -> None:
        self.ticks += 1


class EpollPoller(Poller):
    """By an epoll beside the hub's."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._fileno = self._epoll.fileno()
        self._mask = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
        self._watcher: Any = None
        self._waiters: list[Waiter | None] = []  # by descriptor
        # the batch
        self._events = syscalls.new_events(_BATCH)
        self._count = 0
        self._next_event = 0

    def add(self, waiter: Waiter) -> None:
        Poller.add(self, waiter)
        fileno = waiter.fileno
        if fileno >= len(self._waiters):
            self._waiters.extend([None] * (fileno + 64 - len(self._waiters)))
        self._waiters[fileno] = waiter
        try:
            self._register(fileno)
        except BaseException:  # such as more than the system watches for one user
            self._waiters[fileno] = None
            Poller.remove(self, waiter)
            raise

    def _register(self, fileno: int) -> None:
        try:
            self._epoll.register(fileno, self._mask)
        except FileExistsError:  # a socket that was closed, and lives on in another process
            self._epoll.modify(fileno, self._mask)

    def remove(self, waiter: Waiter) -> None:
        self._waiters[waiter.fileno] = None
        self._epoll.unregister(waiter.fileno)
        Poller.remove(self, waiter)

    def close(self) -> None:
        self._epoll.close()

    def after_fork(self) -> None:
        # The descriptor stays, the epoll behind it is no longer the parent's.
        with select.epoll() as fresh:
            os.dup2(fresh.fileno(), self._fileno, inheritable=False)
        self._count = self._next_event = 0
        for waiter in self._waiters:
            if waiter is not None:
                self._epoll.register(waiter.fileno, self._mask)

    def switch(self, waiter: Waiter) -> None:
        following = self._next()
        if following is None:
            switching.switch(waiter.hub)
        elif following is not waiter:
            switching.switch(following.greenlet)

    def _next(self) -> Waiter | None:
        """The next of the batch that somebody waits for; its greenlet is to be switched to."""
        while self._next_event < self._count:
            index = self._next_event
            self._next_event = index + 1
            waiter = self._waiters[syscalls.event_fd(self._events, index)]
            if waiter is not None:
                if syscalls.event_ends(self._events, index):
                    waiter.ends = True
                if waiter.greenlet is None:
                    waiter.pending = True
                elif waiter.why == _ASLEEP:
                    waiter.why = _READABLE
                    if switching.FETCHES:
                        self._look_ahead()
                    return waiter
        return None

    def _look_ahead(self) -> None:
        """Has what the next three need loaded meanwhile: for each a step that builds on what the
        step before has loaded. Among a thousand connections hardly anything of one is in a
        cache."""
        ahead = self._ahead(2)
        if ahead is not None:
            switching.fetch_object(ahead, _OBJECT)
        ahead = self._ahead(1)
        if ahead is not None:
            switching.fetch_object(ahead.greenlet, _OBJECT)
            switching.fetch_at(ahead._near1, _OBJECT)
            switching.fetch_at(ahead._near2, _OBJECT)
            switching.fetch_at(ahead._near3, _OBJECT)
            switching.fetch_at(ahead._near4, _OBJECT)
        ahead = self._ahead(0)
        if ahead is not None and ahead.greenlet is not None:
            switching.fetch_state(ahead.greenlet)

    def _ahead(self, steps: int) -> Waiter | None:
        if self._next_event + steps >= self._count:
            return None
        return self._waiters[syscalls.event_fd(self._events, self._next_event + steps)]

    def _dispatch(self) -> None:
        """In the hub: runs everybody whose socket is readable."""
        self._count = syscalls.wait(self._epoll, self._fileno, self._events, _BATCH)
        self._next_event = 0
        self.dispatching = True
        try:
            while True:
                waiter = self._next()
                if waiter is None:
                    break
                self._run(waiter.greenlet)
        finally:
            self.dispatching = False

    def _run(self, greenlet: Any) -> None:
        hub: Any = switching.current()
        try:
            switching.switch(greenlet)
        except GreenletExit:  # the hub is to end
            raise
        except BaseException as error:  # a bare greenlet that died
            hub.handle_error(greenlet, type(error), error, error.__traceback__)
        try:
            self.uncork()
        except Exception as error:  # there is no memory
            hub.handle_error(self, type(error), error, error.__traceback__)

    def _open(self, loop: Any) -> None:
        Poller._open(self, loop)
        self._watcher = loop.io(self._fileno, 1)
        self._watcher.start(self._dispatch)

    def _close(self) -> None:
        Poller._close(self)
        self._watcher.close()
        self._watcher = None


class WatcherPoller(Poller):
    """By a watcher of gevent's for each socket."""

    def add(self, waiter: Waiter) -> None:
        Poller.add(self, waiter)
        waiter.watcher = waiter.hub.loop.io(waiter.fileno, 1)
        waiter.watcher.start(waiter.on_readable)

    def remove(self, waiter: Waiter) -> None:
        waiter.watcher.close()
        waiter.watcher = None
        Poller.remove(self, waiter)


class Waiter:
    """A socket for whose input one greenlet at a time may wait."""

    def __init__(self, hub: Hub, fileno: int) -> None:
        self.hub = hub
        self.fileno = fileno
        self.poller = poller_of(hub)
        self.greenlet: Any = None  # the one that waits
        self.why = _ASLEEP
        self.pending = False  # it was readable while nobody waited
        self.ends = False  # the peer has ended its stream, or the connection is lost
        self.watched = False
        self.watcher: Any = None
        self._near1 = self._near2 = self._near3 = self._near4 = 0

    def lies_near(self, near1: object, near2: object, near3: object, near4: object) -> None:
        """Says what the greenlet that is woken will use. It is not kept alive."""
        self._near1 = id(near1)
        self._near2 = id(near2)
        self._near3 = id(near3)
        self._near4 = id(near4)

    def wait(self) -> int:
        """Blocks this greenlet until the socket is readable, or :meth:`wake` is called; returns
        why. May say READABLE in vain."""
        if self.pending:
            self.pending = False
            return _READABLE
        if not self.watched:
            self.poller.add(self)
            self.watched = True
        elif self.watcher is not None and not self.watcher.active:
            self.watcher.start(self.on_readable)
        self.why = _ASLEEP
        greenlet = switching.current()
        if greenlet is self.hub:
            raise BlockingSwitchOutError("a callback of the event loop cannot wait for a socket")
        self.greenlet = greenlet
        try:
            while self.why == _ASLEEP:
                self.poller.switch(self)
        finally:
            self.greenlet = None
        return self.why

    def wake(self, why: int) -> None:
        """In the hub: runs the greenlet that waits, if one does."""
        if self.greenlet is not None and self.why == _ASLEEP:
            self.why = why
            switching.switch(self.greenlet)

    def wake_soon(self) -> None:
        """Lets the hub run the greenlet that waits, as if the socket were readable."""
        self.hub.loop.run_callback(self._on_turn)

    def _on_turn(self) -> None:
        self.wake(_READABLE)

    def on_readable(self) -> None:
        """In the hub: what a watcher calls."""
        if self.greenlet is None:
            self.pending = True
            self.watcher.stop()
        else:
            self.wake(_READABLE)

    def unwatch(self) -> None:
        """To be called before the descriptor is closed."""
        if self.watched:
            self.watched = False
            self.poller.remove(self)

    def flush(self) -> None:
        """Sends what the poller's cork holds back of this socket."""


_pollers: WeakKeyDictionary[Hub, Poller] = WeakKeyDictionary()


def _after_fork() -> None:
    for poller in list(_pollers.values()):
        poller.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def poller_of(hub: Hub) -> Poller:
    """The poller of ``hub``."""
    poller = _pollers.get(hub)
    if poller is None:
        kind = EpollPoller if hasattr(select, "epoll") else WatcherPoller
        poller = _pollers[hub] = kind()
    return poller


def drop_poller(hub: Hub) -> None:
    """To be called before ``hub`` is destroyed: gevent may keep it, though its thread is over."""
    poller = _pollers.pop(hub, None)
    if poller is not None:
        poller.close()
