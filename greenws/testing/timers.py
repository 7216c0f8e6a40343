"""Time under the control of a test.

While a test has connections or a clock, its hub has a ``ClockLoop`` in place of its loop: the same
loop, with other timers. These are the loop's own until a clock stops time. Then they are kept in
the order of their time, and fire when the clock is advanced: keepalive, timeouts, ``gevent.sleep``
and all other users of gevent's timers. ``time.time`` and ``time.monotonic`` follow the clock too.

``RealTimeout``, which bounds the waits of a test, uses the real loop, and real time.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

import gevent
from gevent import getcurrent
from gevent.hub import Waiter

from ..rooms.ages import age_time, real_time

__all__ = [
    "Clock",
    "ClockLoop",
    "RealTimeout",
    "clock",
    "hold",
    "is_frozen",
    "move_time",
    "release",
    "running",
    "settle",
]

_TIMES = ("time", "monotonic", "time_ns", "monotonic_ns")

_EPSILON = 1e-6  # seconds; a time that was added up in several steps is a little more or less
_LONGEST_ROUND = 0.5  # seconds
_LONGEST = 3600.0  # seconds for which a clock goes on by itself

running: list[Clock] = []
"""The clock that stops time, if there is one."""

_idling: set[Any] = set()  # greenlets that wait until no other can run

_ROUNDS = 2  # the second receives what the first has sent through the kernel


class ClockLoop:
    """The loop of a hub, with timers that a clock may stop. Everything else is the loop's."""

    def __init__(self, real: Any) -> None:
        values = self.__dict__
        values["real"] = real
        values["clock"] = None
        values["had_clock"] = False
        values["active"] = set()  # timers
        values["holders"] = 0
        # Frequently used, so found without __getattr__.
        values["run_callback"] = real.run_callback
        values["io"] = real.io

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self.real, name, value)

    def timers_now(self) -> float:
        """The time in which timers are due: a clock's, or real time, freezegun or not."""
        return real_time() if self.clock is None else self.clock._now()

    def timer(
        self, after: float, repeat: float = 0.0, ref: bool = True, priority: int | None = None
    ) -> Any:
        shortest = 0.0 if self.real.iteration >= 0 else 0.001  # libuv; see hub/turns.py
        if after <= shortest and not repeat:  # the end of a turn, not a delay
            return self.real.timer(after, repeat, ref, priority)
        return _Timer(self, after, repeat, ref, priority)


class _Timer:
    """A timer of a :class:`ClockLoop`, with the methods and attributes of gevent's."""

    def __init__(
        self, loop: ClockLoop, after: float, repeat: float, ref: bool, priority: int | None
    ) -> None:
        self.loop = loop
        self.ref = ref
        self.priority = priority
        self.callback: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()
        self.due = 0.0  # in the time of the loop
        self.number = 0  # in the queue of a clock
        self._waiting: Any = None  # the greenlet that waits for nothing but this
        self._after = after
        self._repeat = repeat
        self._watcher: Any = None

    def start(self, callback: Callable[..., object], *args: Any, **options: Any) -> None:
        self.stop()
        self.callback, self.args = callback, args
        # gevent.sleep(), a gevent.Timeout and what is built on them
        is_wait = isinstance(getattr(callback, "__self__", None), (Waiter, gevent.Timeout))
        self._waiting = getcurrent() if is_wait else None
        self._schedule(self._after)

    def again(self, callback: Callable[..., object], *args: Any, **options: Any) -> None:
        self.stop()
        self.callback, self.args = callback, args
        if self._repeat:
            self._schedule(self._repeat)

    def stop(self) -> None:
        self.loop.active.discard(self)
        self.callback, self.args = None, ()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> _Timer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def active(self) -> bool:
        return self in self.loop.active

    @property
    def pending(self) -> bool:
        return False

    @property
    def is_ticker(self) -> bool:
        """Whether it only counts ticks, so that nothing needs to run after it."""
        return bool(self._repeat) and not self.ref

    def is_of(self, greenlet: Any) -> bool:
        """Whether ``greenlet`` waits for it. The test itself waits in real time: while it sleeps,
        it cannot advance its clock."""
        return self._waiting is not None and self._waiting is greenlet

    def _schedule(self, after: float) -> None:
        self.due = self.loop.timers_now() + after
        self.loop.active.add(self)
        if self.loop.clock is not None and not self.is_of(self.loop.clock.owner):
            self.loop.clock._add(self)
        else:
            self._watch(after)

    def _watch(self, after: float) -> None:
        self._watcher = self.loop.real.timer(max(after, 0.0), 0.0, self.ref, self.priority)
        self._watcher.start(self.fire)

    def freeze(self) -> None:
        """Called when the clock stops."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def thaw(self, now: float) -> None:
        """Called when time goes on; the clock's time was ``now``."""
        after = self.due - now
        self.due = self.loop.timers_now() + after
        self._watch(after)

    def fire(self) -> None:
        """In the hub: calls the callback."""
        if self not in self.loop.active:
            return
        self.loop.active.discard(self)
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        callback, args = self.callback, self.args
        if self._repeat:
            self._schedule(self._repeat)
        assert callback is not None
        callback(*args)


def is_frozen() -> bool:
    """Whether something else than a clock has replaced Python's time, such as freezegun."""
    if running:
        return running[0].is_replaced
    return not isinstance(time.monotonic, BuiltinFunctionType)


def hold(hub: Any) -> ClockLoop:
    """Gives ``hub`` a :class:`ClockLoop` until as many calls of :func:`release`."""
    if not isinstance(hub.loop, ClockLoop):
        # polling.py looks at the module of the loop's type.
        kind = type("loop", (ClockLoop,), {"__module__": type(hub.loop).__module__})
        hub.loop = kind(hub.loop)
    loop: ClockLoop = hub.loop
    loop.holders += 1
    return loop


def release(hub: Any) -> None:
    """See :func:`hold`."""
    loop = hub.loop
    if isinstance(loop, ClockLoop):
        loop.holders -= 1
        if loop.holders == 0:
            hub.loop = loop.real


def settle() -> None:
    """Lets the greenlets of this thread run until all wait for time or for a peer."""
    for _ in range(_ROUNDS):
        _idle()


def _idle() -> None:
    """Waits until no greenlet can run; with a limit, since one may never wait."""
    hub = gevent.get_hub()
    loop: Any = hub.loop.real if isinstance(hub.loop, ClockLoop) else hub.loop
    waiter: Any = Waiter(hub)
    _idling.add(waiting := getcurrent())
    try:
        with loop.idle() as idle, loop.timer(_LONGEST_ROUND) as timer:
            idle.start(waiter.switch, None)
            timer.start(waiter.switch, None)
            waiter.get()
    finally:
        _idling.remove(waiting)


class RealTimeout(BaseException):
    """Thrown into the greenlet that made it after ``seconds`` of real time, unless closed before.
    None means never.

    On a busy machine, time alone does not show a timeout: there must also be no greenlet that can
    run, or the time must have passed once more.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__(seconds)
        self._watchers: list[Any] = []
        if seconds is not None:
            loop = gevent.get_hub().loop
            self._loop = loop.real if isinstance(loop, ClockLoop) else loop
            self._greenlet = getcurrent()
            # libev counts from the loop's last iteration, which may be longer ago than the timeout
            # if the test has blocked since.
            self._loop.update_now()
            self._watch(self._loop.timer(seconds), self._on_time)

    def _watch(self, watcher: Any, callback: Callable[[], None]) -> None:
        self._watchers.append(watcher)
        watcher.start(callback)

    def _on_time(self) -> None:
        self._watch(self._loop.idle(), self._on_idle)
        self._watch(self._loop.timer(max(self.args[0], 1.0)), self._throw)

    def _on_idle(self) -> None:
        if self._greenlet not in _idling:  # or it can run itself
            self._throw()

    def _throw(self) -> None:
        self.close()
        self._greenlet.throw(self)

    def close(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.close()


class Clock:
    """Time that moves when the test says so, from :func:`clock`."""

    def __init__(self) -> None:
        self.owner: Any = None
        """The greenlet of the test."""
        self._hub: Any = None
        self._loop: Any = None
        self._began = 0.0  # in real time
        self._elapsed = 0.0
        self._replaced: dict[str, Any] = {}
        """The functions of ``time``: another library's (freezegun's), if that came first."""
        self._fakes: dict[str, Callable[[], float]] = {}
        """What replaces them."""
        self._queue: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()

    @property
    def elapsed(self) -> float:
        """Seconds by which the clock was advanced."""
        return round(self._elapsed, 6)  # see _EPSILON

    @property
    def is_replaced(self) -> bool:
        """Whether another library (freezegun) has replaced ``time.monotonic()`` since."""
        return time.monotonic is not self._fakes.get("monotonic")

    def advance(self, seconds: float) -> None:
        """Moves time by ``seconds``. Timers fire in the order of their time, and each time all
        greenlets run until they wait again, before the clock goes on. Clients that the test does
        not stall answer pings.

        Raises:
            ValueError: ``seconds`` is negative.
            RuntimeError: outside of the ``with``; or another library has replaced
                ``time.monotonic()`` in there.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock goes forward by 0 or more seconds, not {seconds!r}")
        if self._hub is None:
            raise RuntimeError("the clock runs by itself: use it in 'with testing.clock() as ...'")
        if self.is_replaced:
            raise RuntimeError(
                "time.monotonic() was replaced since testing.clock() began, as by freezegun's "
                "freeze_time: write 'with freeze_time(...), testing.clock() as clock', with the "
                "clock inside"
            )
        end = self._elapsed + seconds
        self._run(end, lambda: False)
        self._elapsed = max(end, self._elapsed)
        settle()

    def advance_until(self, is_done: Callable[[], bool]) -> None:
        """Moves time until ``is_done()``, but no further than an hour."""
        self._run(self._elapsed + _LONGEST, is_done)

    def _run(self, end: float, is_done: Callable[[], bool]) -> None:
        settle()
        while not is_done():
            due = self._next()
            if due is None or due > self._began + end + _EPSILON:
                break
            self._elapsed = max(self._elapsed, due - self._began)
            timers = self._take(due)
            if all(timer.is_ticker for timer in timers):  # no greenlet waits for one of these
                for timer in timers:
                    timer.fire()
                continue
            for timer in timers:
                self._loop.run_callback(timer.fire)
            settle()

    def _now(self) -> float:
        return self._began + self._elapsed

    def _add(self, timer: _Timer) -> None:
        timer.number = next(self._numbers)  # an earlier entry for it is void
        heapq.heappush(self._queue, (timer.due, timer.number, timer))

    def _next(self) -> float | None:
        """The time of the first timer."""
        queue = self._queue
        while queue and not self._is_current(queue[0]):
            heapq.heappop(queue)
        return queue[0][0] if queue else None

    def _is_current(self, entry: tuple[float, int, _Timer]) -> bool:
        _, number, timer = entry
        return timer in self._loop.active and timer.number == number

    def _take(self, due: float) -> list[_Timer]:
        timers = []
        while self._queue and self._queue[0][0] <= due + _EPSILON:
            entry = heapq.heappop(self._queue)
            if self._is_current(entry):
                timers.append(entry[2])
        return timers

    def __enter__(self) -> Clock:
        if running:
            raise RuntimeError("time is under the control of another clock")
        running.append(self)
        self.owner = getcurrent()
        self._hub = gevent.get_hub()
        self._loop = hold(self._hub)
        self._began = real_time()
        self._elapsed = 0.0
        began, began_ns = time.monotonic(), time.monotonic_ns()
        wall, wall_ns = time.time(), time.time_ns()
        self._fakes = {
            "monotonic": lambda: began + self._elapsed,
            "monotonic_ns": lambda: began_ns + int(self._elapsed * 1e9),
            "time": lambda: wall + self._elapsed,
            "time_ns": lambda: wall_ns + int(self._elapsed * 1e9),
        }
        self._replaced = {name: getattr(time, name) for name in _TIMES}
        for name, fake in self._fakes.items():
            setattr(time, name, fake)
        age_time.stop(lambda: self._elapsed)
        self._loop.clock = self
        for timer in self._loop.active:
            if not timer.is_of(self.owner):
                timer.freeze()
                self._add(timer)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._hub is None:
            return
        running.remove(self)
        now = self._now()
        for name, function in self._replaced.items():
            setattr(time, name, function)
        self._fakes.clear()  # they refer to the clock
        age_time.go_on()
        loop = self._loop
        loop.clock = None
        loop.had_clock = True
        # libev counts from the loop's last iteration, and the test may have blocked since.
        loop.real.update_now()
        for timer in loop.active:
            if not timer.is_of(self.owner):
                timer.thaw(now)
        self.owner = None
        self._queue.clear()
        release(self._hub)
        self._hub = self._loop = None


def move_time(hub: Any, is_done: Callable[[], bool]) -> None:
    """Moves time until ``is_done()``, if a clock controls the time of ``hub``, or did while a
    connection there was open: in real time, that would take too long."""
    loop = hub.loop
    if not isinstance(loop, ClockLoop) or is_done():
        return
    if loop.clock is not None:
        if getcurrent() is loop.clock.owner:
            loop.clock.advance_until(is_done)
    elif loop.had_clock and not running:
        with Clock() as clock:
            clock.advance_until(is_done)


def clock() -> Clock:
    """In ``with testing.clock() as clock:``, time stops, except in ``clock.advance()``::

        with testing.clock() as clock, testing.connect(app, "/feed") as socket:
            clock.advance(30)                     # at once
            assert socket.receive() == "half a minute later"

    In the block, the timers of this thread's hub (keepalive, ``max_lifetime``, the timeouts of
    ``receive()``, ``gevent.sleep``, ``gevent.Timeout``...) and, in the whole process,
    ``time.time()`` and ``time.monotonic()`` follow the clock. ``datetime.now()`` does not. The test
    itself waits in real time, with its sockets and with ``gevent.sleep``. ``close()`` moves time
    until it is answered, and the end of a connection until its handler has ended; at most an hour.

    Raises:
        RuntimeError: in the ``with``, if there is another clock.
    """
    return Clock()
