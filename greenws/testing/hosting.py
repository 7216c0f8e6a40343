"""The server of one test connection, which listens nowhere: what an application gets is what it
would get from ``WebSocketServer``, but for errors, which the test gets.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gevent

from ..config import Config
from ..hub import forks
from ..server.handler import UpgradeHandler
from ..server.server import WebSocketServer
from ..stats import ServerStats, SessionRecord
from .sockets import Run

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["TestServer", "is_of_a_session"]

_ports = iter(range(1 << 62))
_runs: dict[Any, Run] = {}  # by greenlet


class _Stats(ServerStats):
    """Tells a run of its session, and takes errors out of it."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def begin(self, session: SessionRecord) -> None:
        super().begin(session)
        self._run.peer = session.socket

    def take_error(self, error: BaseException) -> bool:
        self._run.is_propagated = True
        self._run.take(error)
        return True


class _Handler(UpgradeHandler):
    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ.update(self.server.extra)
        return environ

    def handle_error(self, kind: Any, value: BaseException, traceback: Any) -> None:
        self.server.stats.take_error(value)
        if not self.is_upgraded:
            self._send_error_response_if_possible(500)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        run = self.server.run
        if exc_info:
            run.take(exc_info[1], exc_info[2])
        elif self.is_upgraded and status[:1] == "5" and not run.errors:
            # The framework has swallowed what the handler raised.
            run.take(
                RuntimeError(
                    f"the application answered {status!r} after it had accepted the WebSocket; its "
                    "own log says why"
                )
            )
        return super().start_response(status, headers, exc_info)


class TestServer(WebSocketServer):
    """Serves ``application`` on the one connection that :meth:`serve` is given. ``extra``: what a
    test client has put into its environ."""

    __test__ = False
    handler_class = _Handler

    def __init__(
        self, application: WSGIApplication, run: Run, config: Config, extra: dict[str, Any]
    ) -> None:
        super().__init__(
            ("127.0.0.1", 0), application, log=None, error_log=sys.stderr, config=config
        )
        self.run = run
        self.extra = extra
        self.stats = _Stats(run)
        _watch_frameworks()

    def serve(self, sock: Any, host: str) -> None:
        """Spawns the greenlet that serves ``sock``; ``host`` is the client's."""
        address = (host, 49152 + next(_ports) % 16384)
        self.run.greenlet = greenlet = gevent.Greenlet(self._serve, sock, address)
        _runs[greenlet] = self.run
        greenlet.rawlink(_runs.pop)
        greenlet.start()

    def _serve(self, sock: Any, address: Any) -> None:
        try:
            self._admit(sock, address, forks.process())
        except gevent.GreenletExit:
            pass
        except BaseException as error:  # pytest.fail() in a handler, or sys.exit()
            self.run.take(error)


def is_of_a_session(greenlet: Any) -> bool:
    """Whether ``greenlet`` runs an application under test."""
    return greenlet in _runs


_watched: set[str] = set()


def _watch_frameworks() -> None:
    """Has Flask and Django tell of the errors that they answer themselves."""
    for name in ("flask", "django.core.signals"):
        module = sys.modules.get(name)
        if module is not None and name not in _watched:
            _watched.add(name)
            module.got_request_exception.connect(_on_exception, weak=False)


def _on_exception(sender: Any, **options: Any) -> None:
    run = _runs.get(gevent.getcurrent())
    error = options.get("exception") or sys.exc_info()[1]
    if run is not None and error is not None:
        run.take(error)
