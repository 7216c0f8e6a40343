"""Turns: no greenlet keeps the hub for longer than 5 ms while others could run.

A socket whose input never ends, a handler that sends in a loop and a batch of slow handlers have
one thing in common: nothing makes them wait. So code that may repeat without waiting counts its
steps here, and ends its turn when the turn is over. The clock is read only every few steps, and at
every step where steps are slow.

A turn ends with a timer and not with a callback of the loop: gevent runs 50 callbacks, and those
that they add, before it asks the kernel for other sockets, timers and signals. Greenlets that have
ended their turns continue in the same order, and share one turn before the next poll.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

from gevent.hub import Hub
from greenlet import GreenletExit

from . import forks, switching, syscalls

__all__ = ["SECONDS", "Turns", "after_poll", "end_turn_if_due", "turns_of"]

SECONDS = 0.005
"""The length of a turn."""

# C numbers where this is compiled
_TURN = int(SECONDS * 1e9)  # nanoseconds
_SHORT = 500_000  # nanoseconds between two readings of the clock; if less, they become rarer
_LONG = 1_000_000  # nanoseconds; if more, the next step reads the clock
_MAX_STEPS = 32  # from one reading to the next

_LIBUV_DELAY = 0.001  # seconds; libuv runs a shorter timer before it polls

switching.load()
forks.load()


class Turns:
    """The turns of one hub. It must not refer to the hub, which would never be freed then."""

    def __init__(self) -> None:
        self.steps = 1
        """Steps until the next reading of the clock. The code that takes a step counts down."""
        self._stride = _MAX_STEPS
        self._end = 0  # 0 until the clock is first read in this turn
        self._read_at = 0
        self._after_poll = False  # whether the turn began with a call of begin()
        self._iteration: float = -1  # of the loop, in which the turn began otherwise
        self._process = forks.process()
        self._queue: deque[list[Any]] = deque()  # greenlets, each in a list that it leaves
        self._timer: Any = None

    def is_over(self, hub: Hub | None) -> bool:
        """Reads the clock; call it when :attr:`steps` is 0. True if the turn is over: then call
        :meth:`end`, or switch to the hub. ``hub`` may be None between :meth:`begin` and
        :meth:`leave`."""
        now = syscalls.clock()
        gap = now - self._read_at
        self._read_at = now
        if gap > _LONG and self._end:
            self._stride = 1
        if self._end and now >= self._end:
            # gevent's callbacks and watchers do not call begin().
            if self._after_poll or not self._is_new_iteration(hub):
                self.steps = 1
                return True
            self._end = 0
        if gap < _SHORT:
            self._stride = min(2 * self._stride, _MAX_STEPS)
        # The hub may have been idle before a new turn, so the gap means little: read again soon.
        self.steps = 1 if gap > _LONG else self._stride
        if self._end == 0:
            self._end = now + _TURN
        return False

    def _is_new_iteration(self, hub: Any) -> bool:
        loop = hub.loop
        if loop is None:  # the hub was destroyed
            return False
        iteration = loop.iteration
        if iteration < 0:  # libuv does not count them
            iteration = loop.now()
        if iteration == self._iteration:
            return False
        self._iteration = iteration
        return True

    def begin(self) -> None:
        """In the hub, after a poll of the kernel: a turn begins, for all that run until
        :meth:`leave`."""
        self._end = 0
        self._after_poll = True

    def renew(self) -> None:
        """A turn begins for the current greenlet, which has polled the kernel itself."""
        self._end = 0

    def leave(self) -> None:
        """In the hub: ends what :meth:`begin` began."""
        self._after_poll = False

    def end(self, hub: Hub) -> None:
        """Blocks this greenlet until the kernel was polled, and others had their turns. Does
        nothing in a callback of the loop, or if the hub was destroyed."""
        greenlet = switching.current()
        if greenlet is hub or hub.loop is None:
            return
        if self._process != forks.process():
            self.forget()
        entry = [greenlet]
        self._queue.append(entry)
        if self._timer is None:
            self._start_timer(hub)
        try:
            while entry:
                switching.switch(hub)
        except BaseException:  # killed, or timed out
            with contextlib.suppress(ValueError):
                self._queue.remove(entry)
            raise

    def step(self, hub: Hub) -> None:
        """Takes a step, and ends the turn if it is over."""
        self.steps -= 1
        if self.steps <= 0 and self.is_over(hub):
            self.end(hub)

    def _start_timer(self, hub: Hub) -> None:
        self._timer = after_poll(hub.loop, self._continue)

    def _continue(self) -> None:
        """In the hub: runs greenlets that have ended their turns, each at most once."""
        if self._process != forks.process():
            self.forget()
            return
        hub: Any = switching.current()
        self._timer.close()
        self._timer = None
        self.begin()
        self._end = syscalls.clock() + _TURN  # some greenlets take one slow step, then wait
        try:
            for _ in range(len(self._queue)):
                if not self._queue:  # one of them has killed others
                    break
                self._run(hub, self._queue.popleft().pop())
                if syscalls.clock() >= self._end:
                    break
        finally:
            self.leave()
            if self._queue and self._timer is None:
                self._start_timer(hub)

    def _run(self, hub: Any, greenlet: Any) -> None:
        try:
            switching.switch(greenlet)
        except GreenletExit:  # the hub is to end
            raise
        except BaseException as error:  # a bare greenlet that died
            hub.handle_error(greenlet, type(error), error, error.__traceback__)

    def forget(self) -> None:
        """In a forked child: drops the greenlets that ended their turns in the parent."""
        self._process = forks.process()
        self._queue.clear()
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        self._after_poll = False


def after_poll(loop: Any, callback: Any) -> Any:
    """A timer without delay: ``loop`` calls ``callback`` after it has polled the kernel."""
    timer = loop.timer(0.0 if loop.iteration >= 0 else _LIBUV_DELAY)
    timer.start(callback)
    return timer


_ATTRIBUTE = "_greenws_turns"  # of a hub

_all_turns: WeakKeyDictionary[Hub, Turns] = WeakKeyDictionary()


def _after_fork() -> None:
    for turns in list(_all_turns.values()):
        turns.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def turns_of(hub: Hub) -> Turns:
    """The turns of ``hub``."""
    # The attribute saves a look-up in Python code.
    turns: Turns | None = getattr(hub, _ATTRIBUTE, None)
    if turns is None:
        turns = _all_turns[hub] = Turns()
        setattr(hub, _ATTRIBUTE, turns)
    return turns


def end_turn_if_due(is_slow: bool = False) -> None:
    """Takes a step. If its turn is over, blocks until the kernel was polled, and
    others had their turns. Does nothing in a callback of the loop, and outside of a hub's own
    greenlets. ``is_slow``: reads the clock at this step in any case."""
    hub = switching.current().parent
    if isinstance(hub, Hub):
        turns = turns_of(hub)
        if is_slow:
            turns.steps = 1
        turns.step(hub)
