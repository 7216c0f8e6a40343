"""Finds what a test leaves open: connections, sessions, greenlets, a stopped clock.

Greenlets count if handlers started them in the sessions of tests, or greenws did. Those of a broker
do not count, since it runs as long as its ``Rooms``; neither do those of a server's connections,
since their sessions count, and those of Engine.IO (Flask-SocketIO), whose server has them for good.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import gevent

from ..keepalive import open_sockets
from ..opcodes import CloseCode
from ..websocket import WebSocket
from . import timers
from .hosting import is_of_a_session, module_of
from .locations import location_of
from .sockets import Run, open_runs
from .timers import Clock, RealTimeout

__all__ = ["Leftovers", "Opener"]

_GRACE = 1.0  # seconds to wait for things that are about to end
_NOT_COUNTED = (
    "greenws.rooms",
    "greenws.server",
    "greenws.integrations",
    "greenws.testing",
    "engineio.",
)

_greenlets: WeakSet[Any] = WeakSet()


def _on_spawn(greenlet: Any) -> None:
    spawner = gevent.getcurrent()
    module = module_of(greenlet)
    is_counted = is_of_a_session(spawner) or spawner in _greenlets or module.startswith("greenws.")
    if is_counted and not module.startswith(_NOT_COUNTED):
        _greenlets.add(greenlet)


gevent.Greenlet.add_spawn_callback(_on_spawn)


class Leftovers:
    """Things that were opened after this was made and are still open; ``excuse()`` removes those
    that are open when it is called."""

    def __init__(self, *, knows_all: bool = True) -> None:
        self._known: WeakSet[Any] = WeakSet(_open() if knows_all else ())

    def excuse(self, things: Iterable[Any]) -> None:
        self._known.update(things)

    def now(self) -> list[Any]:
        return [thing for thing in _open() if thing not in self._known]

    def end(self) -> str:
        """Ends all that is left, after a short time to end by itself; describes it in a few lines,
        or returns an empty string."""
        began = time.perf_counter()
        while self._other_than_clocks() and time.perf_counter() - began < _GRACE:
            _sleep(0.01)
        left = self.now()
        reported = [thing for thing in left if not isinstance(thing, Run) or thing.is_left_open]
        text = "\n".join(_describe(thing) for thing in reported)
        for thing in left:
            _end(thing)
        return text

    def _other_than_clocks(self) -> list[Any]:
        # Greenlets that wait for a stopped clock, or for the test, would not end.
        if timers.running:
            return []
        return [
            thing
            for thing in self.now()
            if not isinstance(thing, Run) or (thing.greenlet is not None and thing.is_ending)
        ]


def _open() -> list[Any]:
    runs = list(open_runs.values())
    of_runs = {socket for run in runs for socket in (run.socket, run.peer)}
    sockets = [socket for socket in open_sockets() if socket not in of_runs]
    greenlets = [greenlet for greenlet in list(_greenlets) if not greenlet.dead]
    return [*timers.running, *runs, *sockets, *greenlets]


def _describe(thing: Any) -> str:
    if isinstance(thing, Clock):
        return "a clock that stops time (use it in a 'with')"
    if isinstance(thing, Run):
        return f"the session {thing.what}, opened at {thing.opened_at}\n{thing.describe()}"
    if isinstance(thing, WebSocket):
        return f"an open connection: {thing!r}"
    return f"a greenlet: {thing!r}\n  {location_of(thing)}"


def _end(thing: Any) -> None:
    if isinstance(thing, Clock):
        thing.__exit__(None, None, None)
    elif isinstance(thing, Run):
        thing.abort()
    elif isinstance(thing, WebSocket):
        thing.start_closing(CloseCode.GOING_AWAY)
        thing._mark_lost("the test is over")
    else:
        thing.kill(block=False)
        _sleep(0)


def _sleep(seconds: float) -> None:
    """Sleeps in real time."""
    limit = RealTimeout(seconds)
    try:
        gevent.get_hub().switch()
    except RealTimeout as expired:
        if expired is not limit:
            raise
    finally:
        limit.close()


class Opener:
    """The fixture ``websocket``: :func:`greenws.testing.connect`, whose connections end with the
    test."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def __call__(self, app: Any, path: str = "/", **options: Any) -> Any:
        from .opening import connect

        __tracebackhide__ = True
        socket = connect(app, path, **options)
        self._runs.append(socket._run)
        return socket

    def end(self, error: BaseException | None = None) -> None:
        """Ends all connections, the last one first. ``error``: what the test raises.

        Raises:
            The exception that escaped a handler; of several, that of the connection opened last.
        """
        __tracebackhide__ = True
        problems = []
        while self._runs:
            run = self._runs.pop()
            try:
                run.end(error)
            except BaseException as problem:
                problems.append(problem)
        if problems:
            raise problems[0]
