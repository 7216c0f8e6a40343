"""gunicorn's worker processes, each with a ``WebSocketServer``.

gunicorn keeps the processes, reloads and restarts them; a worker that is to end closes its sessions
with 1001 at once, instead of letting them run into ``--graceful-timeout``. It ends by force what
has not ended shortly before that, since gunicorn would kill the process.
"""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler

from ..config import Config
from ..server.handler import UpgradeHandler
from ..server.server import WebSocketServer

__all__ = ["Worker"]

_GOING_AWAY = 1001
_FAREWELL = 0.5  # seconds: for sessions after SIGQUIT or Ctrl-C, and for requests after SIGTERM
_LAST_MOMENT = 1.5  # seconds, more than a worker takes to see that all has ended

_logger = logging.getLogger("greenws.server")


class _Handler(UpgradeHandler, PyWSGIHandler):  # type: ignore[misc]
    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ["RAW_URI"] = self.path  # as in all of gunicorn's workers
        return environ

    def log_request(self) -> None:
        if not self.is_upgraded:
            PyWSGIHandler.log_request(self)


class _Server(WebSocketServer):
    running: weakref.WeakSet[_Server] = weakref.WeakSet()
    _ending: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        super().start()
        self.running.add(self)

    def close(self) -> None:
        """What gunicorn calls when this worker is to accept no more."""
        super().close()
        if not self.is_stopping:
            for socket in self.stats.open_sockets:
                socket.start_closing(_GOING_AWAY)
            self._ending = gevent.spawn(self._end_connections)

    def _end_connections(self) -> None:
        """Ends those on which no request comes any more, when all requests and sessions have ended:
        gunicorn would wait for them until ``--graceful-timeout``."""
        while True:
            self.admission.wait_until_quiet(None)
            gevent.sleep(_FAREWELL)  # for a request that is on its way
            if not self.admission.busy:
                break
        self.admission.end_all()

    def give_up(self) -> None:
        """Ends by force what is still at work."""
        if self.admission.busy:
            _logger.warning(
                "%d requests and sessions did not end within --graceful-timeout, and are killed",
                self.admission.busy,
            )
            self.admission.end_all()

    @property
    def is_stopping(self) -> bool:
        return self._ending is not None or super().is_stopping

    def stop(self, timeout: float | None = None, *, grace: float | None = None) -> None:
        if self._ending is not None:
            self._ending.kill()
        super().stop(timeout, grace=grace)


class Worker(GeventPyWSGIWorker):  # type: ignore[misc]
    """``gunicorn -k greenws.gunicorn.Worker -w 4 app:app``. As gunicorn's gevent workers, it
    monkey-patches the process before the application is imported; ``--worker-connections`` bounds
    the sessions of one worker. A subclass may set :attr:`config`."""

    wsgi_handler = _Handler
    config = Config()
    """The limits of the sessions."""

    def server_class(self, listener: Any, **options: Any) -> WebSocketServer:
        return _Server(listener, config=self.config, **options)

    def run(self) -> None:
        _join_logs()
        super().run()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        timeout = self.cfg.graceful_timeout
        gevent.spawn_later(max(timeout - _LAST_MOMENT, timeout / 2), self._give_up)

    def _give_up(self) -> None:
        for server in list(_Server.running):
            server.give_up()

    def handle_quit(self, sig: int, frame: Any) -> None:
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        self.alive = False
        servers = list(_Server.running)
        for server in servers:
            server.close()
        deadline = time.monotonic() + _FAREWELL
        while any(server.clients for server in servers) and time.monotonic() < deadline:
            gevent.sleep(0.01)
        super().handle_quit(sig, frame)


class _AccessHandler(logging.Handler):
    """Writes the lines of sessions among those of requests, likewise with the time."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("gunicorn.access").info(
            "%s %s", time.strftime("[%d/%b/%Y:%H:%M:%S %z]"), record.getMessage()
        )


def _join_logs() -> None:
    """Lets greenws log where gunicorn does, unless the application has said where."""
    ours, access = logging.getLogger("greenws"), logging.getLogger("greenws.access")
    errors, requests = logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")
    is_told = ours.hasHandlers()
    if not (ours.handlers or access.handlers) and (requests.handlers or not is_told):
        access.propagate = False
        if requests.handlers:
            access.addHandler(_AccessHandler())
            access.setLevel(access.level or logging.INFO)
    if not is_told:
        ours.propagate = False
        ours.setLevel(ours.level or errors.level)
        for handler in errors.handlers:
            ours.addHandler(handler)
