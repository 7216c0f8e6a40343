"""The server of test connections, which does not listen. An application gets what it would get from
``WebSocketServer``, but its errors go to the test.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import gevent
from geventwebsocket.exceptions import WebSocketError

from ..config import Config
from ..exceptions import ConnectionClosed
from ..hub import forks
from ..server.handler import UpgradeHandler
from ..server.server import WebSocketServer
from ..stats import ServerStats, SessionRecord
from . import frameworks
from .sockets import Run

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["TestServer", "is_of_a_session", "module_of"]

_ports = iter(range(1 << 62))
_runs: dict[Any, Run] = {}  # by greenlet
_helpers: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()
"""The greenlets that handlers have started, and these."""


class _TestStats(ServerStats):
    """Reports sessions to their runs, and the exceptions that escape them."""

    def begin(self, session: SessionRecord) -> None:
        super().begin(session)
        run = _runs.get(gevent.getcurrent())
        if run is not None:
            run.peer = session.socket

    def take_error(self, error: BaseException) -> bool:
        run = _runs.get(gevent.getcurrent())
        if run is None:
            return False
        run.is_propagated = True
        run.take(error)
        return True


class _TestHandler(UpgradeHandler):
    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ.update(_runs[gevent.getcurrent()].extra)
        return environ

    def handle_error(self, kind: Any, value: BaseException, traceback: Any) -> None:
        self.server.stats.take_error(value)
        if not self.is_upgraded:
            self._send_error_response_if_possible(500)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        run = _runs[gevent.getcurrent()]
        if exc_info:
            run.take(exc_info[1], exc_info[2])
        elif self.is_upgraded and status[:1] == "5" and not run.errors:
            # The framework has swallowed the handler's exception.
            run.take(
                RuntimeError(
                    f"the application answered {status!r} after it had accepted the WebSocket; its "
                    "own log says why"
                )
            )
        return super().start_response(status, headers, exc_info)


class TestServer(WebSocketServer):
    """Serves ``application`` on the connections of tests. Connections that are open at the same
    time share one server, as in production: its ``clients``, its ``stats``, its limits."""

    __test__ = False
    handler_class = _TestHandler

    def __init__(self, application: WSGIApplication, config: Config) -> None:
        super().__init__(
            ("127.0.0.1", 0), application, log=None, error_log=sys.stderr, config=config
        )
        self.stats = _TestStats()
        self._runs_open = 0

    @staticmethod
    def of(application: WSGIApplication, config: Config) -> TestServer:
        """The server of ``application`` with these limits."""
        frameworks.watch(_on_exception)
        for server in _servers:
            if server.application is application and server.config == config:
                return server
        return TestServer(application, config)

    def serve(self, run: Run, sock: Any, host: str) -> None:
        """Spawns the greenlet that serves ``sock``; ``host`` is the client's."""
        if self._runs_open == 0:
            _servers.append(self)
        self._runs_open += 1
        run.server = self
        address = (host, 49152 + next(_ports) % 16384)
        databases = frameworks.databases_of_test()
        run.greenlet = greenlet = gevent.Greenlet(self._serve, run, sock, address, databases)
        _runs[greenlet] = run
        greenlet.rawlink(_runs.pop)
        greenlet.start()

    def leave(self) -> None:
        """Called when a run has ended."""
        self._runs_open -= 1
        if self._runs_open == 0:
            _servers.remove(self)

    def _serve(
        self, run: Run, sock: Any, address: Any, databases: AbstractContextManager[None]
    ) -> None:
        try:
            with databases:
                self._admit(sock, address, forks.process())
        except gevent.GreenletExit:
            pass
        except BaseException as error:  # pytest.fail() in a handler, or sys.exit()
            run.take(error)


_servers: list[TestServer] = []


def is_of_a_session(greenlet: Any) -> bool:
    """Whether ``greenlet`` runs an application under test."""
    return greenlet in _runs


def module_of(greenlet: Any) -> str:
    """The module of the function that ``greenlet`` runs; empty if unknown."""
    function: Any = getattr(greenlet, "_run", None)
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return getattr(function, "__module__", None) or ""


def _on_spawn(greenlet: Any) -> None:
    spawner = gevent.getcurrent()
    run = _runs.get(spawner) or _helpers.get(spawner)
    if run is not None and not module_of(greenlet).startswith("greenws."):
        _helpers[greenlet] = run
        run.helpers.add(greenlet)
        greenlet.rawlink(_on_end)


def _on_end(greenlet: Any) -> None:
    """A greenlet whose peer is gone has ended as its handler does."""
    error = greenlet.exception
    run = _helpers.pop(greenlet, None)
    if run is not None and isinstance(error, Exception) and not _is_normal(error):
        run.take_of_helper(error)


def _is_normal(error: Exception) -> bool:
    return isinstance(error, (ConnectionClosed, WebSocketError))


gevent.Greenlet.add_spawn_callback(_on_spawn)


def _on_exception(error: BaseException) -> None:
    run = _runs.get(gevent.getcurrent())
    if run is not None:
        run.take(error)
