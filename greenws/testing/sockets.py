"""``TestSocket``: the end of a connection that a test uses. Its waits are bounded, and their errors
explain what both sides do. ``Run`` has the other end.

The hub runs only while the test waits.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any
from weakref import WeakSet

import gevent
from gevent import socket as gevent_socket

from ..checks import check_number
from ..config import Config, check_seconds
from ..hub import forks
from ..hub.transport import Transport
from ..keepalive import start_pulse
from ..opcodes import OpcodeType
from ..waiting import no_sessions
from ..websocket import NO_TIMEOUT, Message, WebSocket, hint_of
from . import timers
from .locations import caller, location_of, place_of, without_machinery
from .timers import ClockLoop, RealTimeout

__all__ = [
    "Pair",
    "Run",
    "TestSocket",
    "check_options",
    "client_config",
    "open_runs",
    "pair",
    "warn_of_open_runs",
]

_EXPIRED = object()
_UNSET: Any = object()
_SMALLEST = 1  # bytes of a send buffer; the kernel makes it a few KiB
_MAX_SHOWN = 5  # greenlets of a handler
_MAX_UNREAD = 16 << 20  # bytes to receive before the test reads again

open_runs: dict[int, Run] = {}
"""The runs that have not ended, by their number, in the order in which they began."""

_numbers = iter(range(1, 1 << 62))


class Run:
    """A connection of a test: its own end, and what runs at the other.

    ``greenlet`` runs the application; None for a :func:`pair`. ``errors``: exceptions that escaped
    it, each with its traceback at that time. ``peer``: the WebSocket at the other end, once open.
    """

    def __init__(self, what: str, timeout: float | None) -> None:
        self.what = what
        self.timeout = timeout
        self.opened_at = caller()
        self.greenlet: gevent.Greenlet[Any, Any] | None = None
        self.socket: TestSocket | None = None
        self.peer: WebSocket | None = None
        self.errors: list[tuple[BaseException, TracebackType | None]] = []
        self.helpers: WeakSet[Any] = WeakSet()
        """The greenlets that the handler has started, and these."""
        self.helper_errors: list[tuple[Exception, Any]] = []
        """The exceptions that escaped greenlets of the handler, each with its traceback then."""
        self.server: Any = None
        self.extra: dict[str, Any] = {}
        """The keys that the test client added to the environ."""
        self.timed_out_read = ""
        """The explanation of a read that timed out, until the next read."""
        self.is_propagated = False
        """Whether an error was answered by nobody but greenws."""
        self.is_over = False
        self._is_raised = False
        self._process = forks.process()
        self._number = next(_numbers)
        self._hub = gevent.get_hub()
        timers.hold(self._hub)
        open_runs[self._number] = self

    @property
    def is_ending(self) -> bool:
        """Whether the test has closed its end."""
        return self.socket is not None and not self.socket.is_connected

    @property
    def is_left_open(self) -> bool:
        """Whether a test that ends now leaves something open. A pair does not count, as it does no
        harm; neither does a connection whose ends are both closed, as after ``cut()``, unless it
        has an error."""
        if self.greenlet is None:
            return False
        return not (self.is_ending and self.greenlet.dead) or bool(
            self.errors and not self._is_raised
        )

    # -- exceptions of the application

    def take(self, error: BaseException, traceback: TracebackType | None = None) -> None:
        """Keeps an error for the test; a GreenletExit does not count."""
        is_known = any(known is error for known, _ in self.errors)
        if not is_known and not isinstance(error, gevent.GreenletExit):
            self.errors.append((error, without_machinery(traceback or error.__traceback__)))

    def take_of_helper(self, error: Exception) -> None:
        """Keeps what escaped a greenlet that the handler has started, for a warning."""
        if not any(known is error for known, _ in self.helper_errors):
            self.helper_errors.append((error, error.__traceback__))

    def warn(self) -> None:
        """Warns of errors of greenlets, except those that get() raised again in the handler, which
        gave them another traceback."""
        for error, traceback in self.helper_errors:
            if error.__traceback__ is traceback:
                raised = _describe_error(error, traceback)
                text = f"a greenlet of the handler of {self.what} raised {raised}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        self.helper_errors.clear()

    def warn_if_left_open(self) -> None:
        """Warns if no test has closed the connection, and tells what escaped the application."""
        if not self.is_left_open or self._process != forks.process():
            return
        text = f"no test has closed the session {self.what}: use 'with', or close()"
        if self.errors and not self._is_raised:
            text += f"; the application raised {_describe_error(*self.errors[0])}"
        file, _, line = self.opened_at.rpartition(":")
        # Python shows no ResourceWarning by default.
        warnings.warn_explicit(text, RuntimeWarning, file, int(line or 0))

    def raise_error(self) -> None:
        """Raises the exception that escaped the application, once."""
        __tracebackhide__ = True
        if self.errors and not self._is_raised:
            self._is_raised = True
            error, traceback = self.errors[0]
            try:
                raise error.with_traceback(traceback)
            finally:
                del error, traceback

    # -- explaining

    def describe(self) -> str:
        """Describes what each side does, in a few lines."""
        lines = []
        if self.greenlet is not None:
            raised = f", having raised {self.errors[0][0]!r}" if self.errors else ""
            lines.append(f"  handler: {location_of(self.greenlet)}{raised}")
            waiting = [helper for helper in list(self.helpers) if not helper.dead]
            waiting.sort(key=lambda helper: helper.minimal_ident)
            for helper in waiting[:_MAX_SHOWN]:
                lines.append(f"  a greenlet of the handler: {location_of(helper)}")
            if len(waiting) > _MAX_SHOWN:
                lines.append(f"  {len(waiting) - _MAX_SHOWN} more greenlets of the handler")
            for error, traceback in self.helper_errors:
                raised = _describe_error(error, traceback)
                lines.append(f"  a greenlet of the handler: raised {raised}")
        elif self.peer is not None:
            lines.append(f"  {self.what}: {location_of(self.peer._transport.greenlet)}")
        for name, socket in (("handler", self.peer), ("test", self.socket)):
            if socket is not None:
                messages_in, _, messages_out, _ = socket.traffic
                state = (
                    "" if socket.is_connected else f", closed {socket.close_code or ''}".rstrip()
                )
                lines.append(f"  {name}: received {messages_in}, sent {messages_out}{state}")
        loop = self._hub.loop
        if timers.is_frozen():
            lines.append("  time.monotonic() was replaced (by freezegun?), so timeouts may not end")
        elif isinstance(loop, ClockLoop) and loop.clock is not None:
            lines.append("  time is stopped by testing.clock(): advance(seconds) moves it")
        return "\n".join(lines)

    def timed_out(self, what: str) -> TimeoutError:
        return TimeoutError(f"{what}\n{self.describe()}")

    # -- the end

    def end(self, error: BaseException | None = None) -> None:
        """Ends the connection, waits for the application, and raises an exception that escaped it.
        ``error``: what the test itself raises.

        Raises:
            TimeoutError: the application does not end within ``timeout``.
        """
        __tracebackhide__ = True
        if self.is_over:
            if error is None:
                self.raise_error()
            return
        had_failed = bool(self.errors) and not self._is_raised
        problem: BaseException | None = None
        try:
            problem = self._end()
        finally:
            self._finish()
        if error is not None and not (had_failed and isinstance(error, Exception)):
            if self.timed_out_read:
                _add_note(error, self.timed_out_read)
            if problem is not None:
                is_raised = any(problem is raised for raised, _ in self.errors)
                text = f"the session {self.what} raised {problem!r}" if is_raised else str(problem)
                _add_note(error, text)
            return
        self.raise_error()
        if problem is not None:
            raise problem
        self.warn()

    def _end(self) -> BaseException | None:
        """Ends both sides; returns an error if that failed."""
        limit = RealTimeout(self.timeout)
        try:
            if self.socket is not None:
                self.socket.resume()
                self.socket.start_closing()
                timers.move_time(self._hub, lambda: self.greenlet is None or self.greenlet.dead)
                self.socket._finish()
            if self.greenlet is not None:
                self.greenlet.join()
        except RealTimeout as expired:
            if expired is not limit:
                raise
            return self.timed_out(
                f"the session {self.what} has not ended within {self.timeout:g} s after its client "
                "had closed"
            )
        finally:
            limit.close()
        return self.errors[0][0] if self.errors else None

    def abort(self) -> None:
        """Ends both sides without a closing handshake."""
        self._finish()

    def _finish(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        open_runs.pop(self._number, None)
        for socket in (self.socket, self.peer if self.greenlet is None else None):
            if socket is not None:
                if socket._pulse is not None:
                    socket._pulse.stop()
                socket._mark_lost("the test is over")
        if self.greenlet is not None and not self.greenlet.dead:
            limit = RealTimeout(1.0)
            try:
                self.greenlet.kill()
            except RealTimeout as expired:
                if expired is not limit:
                    raise
            finally:
                limit.close()
        if self.server is not None:
            self.server.leave()
        timers.release(self._hub)

    def opposite(self, socket: WebSocket) -> WebSocket | None:
        """The other end."""
        return self.peer if socket is self.socket else self.socket


@atexit.register
def warn_of_open_runs() -> None:
    """At the end of the process; pytest's plugin has reported and ended those of its tests."""
    raised = []
    for run in list(open_runs.values()):
        try:
            run.warn_if_left_open()
        except RuntimeWarning as warning:  # warnings are errors, which have no place
            raised.append(f"{run.opened_at}: {warning}")
    if raised:
        raise RuntimeWarning("\n".join(raised))  # Python prints only one


def _describe_error(error: BaseException, traceback: Any) -> str:
    place = place_of(traceback)
    return f"{error!r} at {place}" if place else repr(error)


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    elif isinstance(error, AssertionError):  # pytest shows only its text
        error.args = ("\n".join([*map(str, error.args), note]),)


class _Watch:
    """Reads a test's socket even while the test does not: pings and Close are answered at once, as
    by a browser. Messages are kept for the next read."""

    def __init__(self, socket: TestSocket) -> None:
        self._socket = socket
        self._transport = transport = socket._transport
        self._watcher = transport.hub.loop.io(transport.fileno, 1, ref=False)
        self._unread = 0  # bytes when the test last read
        transport.on_close = self._watcher.close

    def start(self) -> None:
        self._unread = self._transport.received
        if not self._transport.closed:
            self._watcher.start(self._on_input)

    def pause(self) -> None:
        if not self._transport.closed:
            self._watcher.stop()

    def _on_input(self) -> None:
        transport = self._transport
        before = transport.received
        if self._socket._poll_unread():  # it took its time, and there is more
            transport.hub.loop.run_callback(self._on_input)
        # At the end of the stream the socket stays readable.
        elif transport.received == before or before - self._unread > _MAX_UNREAD:
            self.pause()


class TestSocket(WebSocket):
    """A :class:`greenws.WebSocket` for tests, from ``connect()`` or ``pair()``.

    It has the same methods, with the same meaning, except for time: none waits longer than the
    ``timeout`` of the connection (in real time, whatever a :func:`greenws.testing.clock` says), and
    the error of a timeout describes both sides. ``receive(timeout=0)`` lets all greenlets run
    first, so that it raises TimeoutError only if nothing was sent.
    """

    __test__ = False  # for pytest, which goes by the name

    _run: Run
    _watch: _Watch
    is_stalled = False

    @classmethod
    def _open(cls, run: Run, transport: Transport, limits: Config, **options: Any) -> TestSocket:
        """The test's end of ``run``, over ``transport``."""
        socket = cls(transport, limits, **options)
        socket._run = run
        socket._watch = _Watch(socket)
        start_pulse(socket, transport.hub, limits)
        socket._watch.start()
        socket._poll_unread()  # frames that arrived with the handshake
        return socket

    # -- reading

    def receive(self, timeout: Any = _UNSET) -> str | bytes:
        __tracebackhide__ = True
        seconds = self._limit(self.read_timeout_seconds if timeout is _UNSET else timeout)
        read = super().receive
        if seconds == 0:
            self._settle()
        else:
            message = self._bounded(seconds, read, None)
            if message is not _EXPIRED:
                return message  # type: ignore[no-any-return]
        try:
            return read(0)
        except TimeoutError:
            raise self._run.timed_out(f"no message within {seconds:g} s") from None

    def _prepare_wait(self) -> None:
        if self._run.greenlet is None:
            super()._prepare_wait()

    def __next__(self) -> str | bytes:
        __tracebackhide__ = True
        message = self._read(super().__next__)
        if message is _EXPIRED:
            raise self._run.timed_out(
                f"no message within {self._limit(self.read_timeout_seconds):g} s"
            )
        return message  # type: ignore[no-any-return]

    def read_string_message(self) -> Message:
        return self._read_message(super().read_string_message)

    def read_bytes_message(self) -> Message:
        return self._read_message(super().read_bytes_message)

    def _read_message(self, read: Callable[[], Message]) -> Message:
        __tracebackhide__ = True
        self._run.timed_out_read = ""
        message: Message = self._read(read)
        if message.opcode == OpcodeType.INVALID and self.is_connected:
            seconds = self._limit(self.read_timeout_seconds)
            self._run.timed_out_read = str(self._run.timed_out(f"no message within {seconds:g} s"))
        return message

    def ping(self, timeout: float | None = None) -> float:
        __tracebackhide__ = True
        seconds = self._limit(timeout)
        trip = self._bounded(seconds, super().ping)
        if trip is _EXPIRED:
            raise self._run.timed_out(f"no pong within {seconds:g} s")
        return trip  # type: ignore[no-any-return]

    def _read(self, read: Callable[[], Any]) -> Any:
        """Calls ``read``, with ``read_timeout_seconds`` in real time."""
        __tracebackhide__ = True
        timeout = self.read_timeout_seconds
        seconds = self._limit(timeout)
        if seconds == 0:
            self._settle()
            result = _EXPIRED
        else:
            self.read_timeout_seconds = None
            try:
                result = self._bounded(seconds, read)
            finally:
                self.read_timeout_seconds = timeout
        if result is not _EXPIRED:
            return result
        self.read_timeout_seconds = 0
        try:
            return read()
        except TimeoutError:
            return _EXPIRED
        finally:
            self.read_timeout_seconds = timeout

    def _limit(self, seconds: float | None) -> float | None:
        longest = self._run.timeout
        if seconds is None or seconds == NO_TIMEOUT:
            return longest
        check_number("timeout", seconds)
        if not seconds >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, or None, not {seconds!r}")
        return seconds if longest is None else min(seconds, longest)

    def _bounded(self, seconds: float | None, call: Callable[..., Any], *args: Any) -> Any:
        """What ``call`` returns, or _EXPIRED."""
        __tracebackhide__ = True
        if self.is_stalled and not self._transport.closed:
            raise RuntimeError("this socket is stalled: call resume() before it reads again")
        self._watch.pause()
        reader = gevent.getcurrent()
        # A test that waits for its application may hold resources: before_wait() is not for it.
        if self._run.greenlet is not None:
            no_sessions.add(reader)
        try:
            return self._within(seconds, call, *args)
        finally:
            no_sessions.discard(reader)
            self._watch.start()

    def _within(self, seconds: float | None, call: Callable[..., Any], *args: Any) -> Any:
        __tracebackhide__ = True
        limit = RealTimeout(seconds)
        try:
            return call(*args)
        except RealTimeout as expired:
            if expired is not limit:
                raise
            return _EXPIRED
        finally:
            limit.close()

    def _settle(self) -> None:
        if gevent.getcurrent() is not self._transport.hub:
            timers.settle()

    # -- sending

    def send(self, data: Any, *, compress: bool | None = None) -> None:
        __tracebackhide__ = True
        self._send(super().send, data, compress=compress)

    def send_string_message(
        self, string: str, final: bool = True, *, compress: bool | None = None
    ) -> None:
        __tracebackhide__ = True
        self._send(super().send_string_message, string, final, compress=compress)

    def send_binary_message(
        self, data: Any, final: bool = True, *, compress: bool | None = None
    ) -> None:
        __tracebackhide__ = True
        self._send(super().send_binary_message, data, final, compress=compress)

    def _send(self, send: Callable[..., None], *args: Any, **options: Any) -> None:
        __tracebackhide__ = True
        if self._within(self._run.timeout, lambda: send(*args, **options)) is _EXPIRED:
            raise self._run.timed_out(
                f"a send was blocked for {self._run.timeout:g} s: the other side does not read"
            )

    def __getattr__(self, name: str) -> Any:
        """Only called for missing attributes."""
        __tracebackhide__ = True
        hint = hint_of(self, name)
        if hint:
            raise AttributeError(hint)
        return object.__getattribute__(self, name)

    # -- a client that behaves badly

    def stall(self) -> None:
        """Stops reading. What the other side sends stays in its outbox as soon as the kernel's
        buffer is full, which is made as small as possible (a few KiB). Pings are not answered.
        Until ``resume()``, reads raise RuntimeError."""
        if self._transport.closed:
            return
        self.is_stalled = True
        self._watch.pause()
        if self._pulse is not None:
            self._pulse.stop()
        opposite = self._run.opposite(self)
        if opposite is not None and not opposite._transport.closed:
            with gevent_socket.socket(fileno=os.dup(opposite._transport.fileno)) as sock:
                sock.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, _SMALLEST)

    def resume(self) -> None:
        """Ends ``stall()``."""
        if self.is_stalled:
            self.is_stalled = False
            self._watch.start()

    def cut(self) -> None:
        """Loses the connection: no Close, 1006 at both ends. Lets all greenlets run."""
        self.is_stalled = False
        self._mark_lost("cut by the test")
        self._settle()

    # -- closing

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Like :meth:`greenws.WebSocket.close`. Then lets all greenlets run; if the handler has
        ended by then, an exception that escaped it is raised here.

        Raises:
            TimeoutError: the other side does not close.
        """
        __tracebackhide__ = True
        self.resume()
        if self._run.greenlet is not None:
            self.start_closing(code, reason)
            timers.move_time(self._transport.hub, lambda: self.close_code is not None)
        if self._within(self._run.timeout, super().close, code, reason) is _EXPIRED:
            problem = self._run.timed_out(
                f"the other side did not answer Close within {self._run.timeout:g} s"
            )
            self._mark_lost("the other side did not answer Close")
            raise problem
        self._settle()
        greenlet = self._run.greenlet
        if greenlet is not None and greenlet.dead:
            self._run.end()

    def _finish(self) -> None:
        """Closes, without a limit in time."""
        super().close()

    def __enter__(self) -> TestSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        self._run.end(error)


class Pair(tuple[TestSocket, TestSocket]):
    """``(server, client)``, from :func:`pair`. As a context manager, it closes both at the end."""

    __slots__ = ()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc: object) -> None:
        self[0]._run.abort()


def client_config(config: Config) -> Config:
    """The config of a test's end: no limit of its own ends the connection."""
    return config.replace(
        max_message_size=None,
        max_fragments=None,
        max_message_rate=None,
        close_timeout=None,
        write_timeout=None,
        ping_interval=None,
        ping_timeout=None,
        access_log=None,
    )


def check_options(timeout: Any, config: Any) -> Config:
    """``config`` or the default.

    Raises:
        TypeError, ValueError: one of them is not allowed.
    """
    if timeout is not None:
        check_seconds("timeout", timeout)
    if config is None:
        return Config()
    if not isinstance(config, Config):
        raise TypeError(f"config must be a greenws.Config, not {config!r}")
    return config


def pair(*, timeout: float | None = 5.0, config: Config | None = None) -> Pair:
    """The two ends of an open connection, ``(server, client)``, for a handler that the test calls
    itself::

        with testing.pair() as (server, client):
            client.send("hello")
            client.start_closing()
            EchoHandler().handle_session(request, server)
            assert client.receive() == "hello"

    Waits of either end are bounded by ``timeout``. ``config`` has the limits of the server's end.

    Raises:
        TypeError: ``config`` is not a :class:`greenws.Config`.
    """
    config = check_options(timeout, config)
    run = Run("the other end", timeout)
    hub = gevent.get_hub()
    ends = []
    for sock, is_client, limits in zip(
        gevent_socket.socketpair(), (False, True), (config, client_config(config)), strict=True
    ):
        transport = Transport(sock, hub, limits.write_high_water)
        address = ("127.0.0.1", 0)
        ends.append(
            TestSocket._open(run, transport, limits, client=is_client, remote_address=address)
        )
    run.peer, run.socket = ends
    return Pair(ends)
