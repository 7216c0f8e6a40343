"""gunicorn's worker processes, each with a ``WebSocketServer``.

gunicorn starts, reloads and restarts the processes. A worker that must stop closes its sessions
with 1001 at once, instead of letting them run until ``--graceful-timeout``. Shortly before that
timeout it kills the rest, because gunicorn would kill the process.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Pool

try:
    from gunicorn.errors import HaltServer
    from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler
except ImportError as error:
    hint = "pip install 'gunicorn[gevent]' (or 'greenws-wsgi[gunicorn]')"
    raise ImportError(f"greenws.gunicorn needs gunicorn: {hint}; {error}") from error

from ..checks import check_application, check_registrations
from ..config import Config
from ..rate_limit import RateLimit
from ..server.balance import Balance
from ..server.closing import close_sessions, drain_sessions
from ..server.handler import UpgradeHandler
from ..server.opening import DirectClient
from ..server.server import ConnectionGreenlet, WebSocketServer
from ..session import OpenSession
from ..surroundings import processes
from .gunicorn_settings import (
    Forwarding,
    conf_of,
    config_of,
    read_proxy_header,
    refused,
    tls_context_of,
    trust_of,
)

__all__ = ["Worker"]

_CLOSE_DELAY = 0.5  # seconds that sessions have after SIGQUIT or Ctrl-C, and requests after SIGTERM
_KILL_MARGIN = 1.5  # seconds between our kill and gunicorn's; a worker takes up to 1 s to exit

_logger = logging.getLogger("greenws.server")


class _WorkerHandler(UpgradeHandler, PyWSGIHandler):  # type: ignore[misc]
    def handle_one_response(self) -> None:
        self.server.count_request()
        super().handle_one_response()

    def log_request(self) -> None:
        if not self.is_upgraded:
            PyWSGIHandler.log_request(self)


class _WorkerServer(WebSocketServer):
    _own_handler_class = _WorkerHandler
    running: weakref.WeakSet[_WorkerServer] = weakref.WeakSet()
    grace = 30.0
    """gunicorn's ``graceful_timeout``, in seconds, less the time for killing the rest."""
    worker: Worker | None = None
    proxy_protocol = "off"
    trusts_proxy: Any = None
    _ending: gevent.Greenlet[[], None] | None = None
    _dropped = 0  # lines that were not logged

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._malformed = RateLimit(1 / 6, burst=10)
        self._taken = RateLimit(1 / 60, burst=1)

    def set_spawn(self, spawn: Any) -> None:
        super().set_spawn(spawn)
        if isinstance(spawn, Pool):
            self.full = self._is_full

    def _is_full(self) -> bool:
        """Whether all of ``--worker-connections`` are taken; logs it once a minute."""
        is_full = bool(self.pool.full())
        if is_full and self._taken.take():
            _logger.warning(
                "all %d connections of this worker are taken (--worker-connections): further "
                "clients wait until one ends",
                self.pool.size,
            )
        return is_full

    def count_request(self) -> None:
        """Counts for ``--max-requests``: at that number the worker ends, and gunicorn starts
        another."""
        worker = self.worker
        if worker is None:
            return
        worker.nr += 1
        if worker.nr >= worker.max_requests and worker.alive:
            worker.log.info("Autorestarting worker after current request.")
            worker.alive = False

    @property
    def _is_bare(self) -> bool:
        return self.proxy_protocol == "off" and super()._is_bare

    @property
    def _finds_clients(self) -> bool:  # type: ignore[override]
        return self.proxy_protocol != "off"

    def _find_client(self, sock: Any, address: Any) -> Any:
        timeout = self.config.handshake_timeout or threading.TIMEOUT_MAX
        try:
            return read_proxy_header(sock, address, self.proxy_protocol, self.trusts_proxy, timeout)
        except ValueError as error:
            self._log_malformed(error)
        except OSError:
            pass
        return None

    def _log_malformed(self, error: ValueError) -> None:
        """Logs ten lines at once, then one every six seconds: any client can cause them."""
        if not self._malformed.take():
            self._dropped += 1
            return
        dropped, self._dropped = self._dropped, 0
        more = f" (and {dropped} more since the last such line)" if dropped else ""
        _logger.warning("closed a connection: %s%s", error, more)

    def _run_session(self, session: OpenSession, client: DirectClient) -> None:
        self.count_request()
        super()._run_session(session, client)

    def start(self) -> None:
        super().start()
        self.running.add(self)

    def close(self) -> None:
        """Called by gunicorn when this worker is to stop accepting."""
        super().close()
        if not self.is_stopping:
            drain_sessions(self.stats.open_sockets, self.config.shutdown_drain, self.grace)
            self._ending = gevent.spawn(self._end_connections)

    def _end_connections(self) -> None:
        """Ends idle connections when all requests and sessions have ended. gunicorn would wait for
        idle ones until ``--graceful-timeout``."""
        while True:
            self.admission.wait_until_quiet(None)
            gevent.sleep(_CLOSE_DELAY)  # a request may be on its way
            if not self.admission.busy:
                break
        self.admission.end_all()

    def kill_all(self) -> None:
        """Kills the requests and sessions that are still in progress."""
        if self.admission.busy:
            _logger.warning(
                "killing %d requests and sessions that did not end within --graceful-timeout",
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
    """``gunicorn -k greenws.gunicorn.Worker -w 4 app:app``. Like gunicorn's gevent workers, it
    monkey-patches the process before the application is imported; ``--worker-connections`` bounds
    the connections of one worker.

    ``gunicorn.conf.py`` may have ``greenws_config``, a :class:`greenws.Config`, and
    ``trusted_proxies``, as for :class:`greenws.WebSocketServer`; a subclass may have them as
    attributes. gunicorn's ``keepalive``, ``limit_request_line``, ``-fields``, ``-field_size`` and
    ``websocket_max_message_size`` set the options that ``greenws_config`` leaves at their
    defaults. ``forwarded_allow_ips``, ``secure_scheme_headers``, ``forwarder_headers``,
    ``proxy_protocol``, ``proxy_allow_ips``, ``max_requests`` and the settings for TLS have the same
    effect as under gunicorn's own workers.
    A setting that cannot be honoured, or a certificate that cannot be used, ends gunicorn at its
    start, and is named in the log; after a SIGHUP the workers keep the previous one.
    """

    wsgi_handler = _WorkerHandler
    config = Config()
    """The limits of the sessions."""
    trusted_proxies = 0
    """The number of trusted proxies, as for :class:`greenws.WebSocketServer`."""

    # The master's: it makes a Worker before it forks the worker's process.
    _balance: Balance | None = None
    _made: weakref.WeakSet[Worker] = weakref.WeakSet()
    _kept: dict[str, Any] = {}  # the last valid settings and TLS context
    _reported: tuple[Any, list[str]] = (None, [])  # a configuration, and its problems

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if Worker._balance is None:
            Worker._balance = Balance()
        # With its own listener, no other worker can accept the clients that wait there.
        self._share = None if self.cfg.reuse_port else Worker._balance.share(self)
        Worker._made.add(self)
        if sum(worker.cfg is self.cfg for worker in Worker._made) > 1:
            Worker._balance.has_several = True
        self._settings = self._read("settings", self._read_settings)
        if not self.cfg.is_ssl:
            self._kept["certificate"] = None  # used if the next reload asks for TLS
        self._tls = self._read("certificate", self._read_tls) if self.cfg.is_ssl else None

    def _read(self, what: str, read: Callable[[], tuple[Any, list[str]]]) -> Any:
        """Returns what ``read`` returns. If that fails after a reload (SIGHUP), or in a worker that
        replaces another, the error is logged and the previous value is used.

        Raises:
            HaltServer: gunicorn is starting, so there is no previous value.
        """
        value, problems = read()
        if not problems:
            self._kept[what] = value
            return value
        halts = what not in self._kept
        if Worker._reported[0] is not self.cfg:
            Worker._reported = (self.cfg, [])
        for problem in problems:
            if problem in Worker._reported[1]:  # logged by the previous worker
                continue
            Worker._reported[1].append(problem)
            if halts:
                self.log.error("greenws.gunicorn.Worker: %s", problem)
            elif self._kept[what] is None:
                self.log.error(
                    "greenws.gunicorn.Worker: %s; the workers go on without TLS", problem
                )
            else:
                self.log.error(
                    "greenws.gunicorn.Worker: %s; the workers keep the previous %s", problem, what
                )
        if halts:
            raise HaltServer(f"greenws.gunicorn.Worker: {problems[0]}", 1)
        return self._kept[what]

    def _read_settings(self) -> tuple[Any, list[str]]:
        try:
            config, hops = conf_of(self.cfg)
            return (
                config_of(self.cfg, self.config if config is None else config),
                self.trusted_proxies if hops is None else hops,
                Forwarding(self.cfg),
            ), refused(self.cfg)
        except (TypeError, ValueError) as error:
            return None, [str(error)]

    def _read_tls(self) -> tuple[Any, list[str]]:
        try:
            return tls_context_of(self.cfg), []
        except Exception as error:  # a function in gunicorn.conf.py may raise anything
            return None, [str(error) or repr(error)]

    def server_class(self, listener: Any, **options: Any) -> WebSocketServer:
        config, hops, forwarding = self._settings
        options.update(config=config, trusted_proxies=hops)
        pool = options.get("spawn")
        if isinstance(pool, Pool):
            pool.greenlet_class = ConnectionGreenlet
        server = _WorkerServer(listener, **options)
        server._share = self._share
        server.grace = self._grace
        server.worker = self
        server._adapt = forwarding
        mode = self.cfg.proxy_protocol
        if mode not in ("off", False):
            server.proxy_protocol = "v1" if mode is True else mode  # a bool before gunicorn 24
            server.trusts_proxy = trust_of(self.cfg.proxy_allow_ips)
        return server

    def init_process(self) -> None:
        # gunicorn asks a worker to end only once. A SIGTERM that arrives before the worker has its
        # own signal handlers would go to the master's, and the worker would run until
        # --graceful-timeout.
        signal.signal(signal.SIGTERM, self._end_early)
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        # Later, gunicorn would replace the worker again and again.
        check_application(self.wsgi, "gunicorn's application")
        check_registrations(self.wsgi)

    def _end_early(self, sig: int, frame: Any) -> None:
        self.alive = False

    def run(self) -> None:
        _join_logs()
        processes.are_several = self.cfg.workers > 1
        if self._tls is not None:
            self.cfg.set("ssl_context", lambda conf, factory: self._tls)
        elif self.cfg.is_ssl:  # a reload asked for it with a certificate that cannot be used
            self.cfg.set("certfile", None)
            self.cfg.set("keyfile", None)
        super().run()

    def notify(self) -> None:
        if self._balance is not None and self._balance.has_several:  # after a SIGTTIN
            processes.are_several = True
        super().notify()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        gevent.spawn_later(self._grace, self._kill_all)

    @property
    def _grace(self) -> float:
        timeout: float = self.cfg.graceful_timeout
        return max(timeout - _KILL_MARGIN, timeout / 2)

    def _kill_all(self) -> None:
        for server in list(_WorkerServer.running):
            server.kill_all()

    def handle_quit(self, sig: int, frame: Any) -> None:
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        self.alive = False
        servers = list(_WorkerServer.running)
        for server in servers:
            server.close()
            close_sessions(server.stats.open_sockets, 0)  # there is no time to drain
        deadline = time.monotonic() + _CLOSE_DELAY
        while any(server.clients for server in servers) and time.monotonic() < deadline:
            gevent.sleep(0.01)
        super().handle_quit(sig, frame)


class _AccessHandler(logging.Handler):
    """Writes the access log of sessions into that of requests, in its format of time."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("gunicorn.access").info(
            "%s %s", time.strftime("[%d/%b/%Y:%H:%M:%S %z]"), record.getMessage()
        )


def _join_logs() -> None:
    """Makes greenws log where gunicorn does, unless the application has configured its loggers."""
    ours, access = logging.getLogger("greenws"), logging.getLogger("greenws.access")
    errors, requests = logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")
    is_configured = ours.hasHandlers()
    if not (ours.handlers or access.handlers) and (requests.handlers or not is_configured):
        access.propagate = False
        if requests.handlers:
            access.addHandler(_AccessHandler())
            access.setLevel(access.level or logging.INFO)
    if not is_configured:
        ours.propagate = False
        ours.setLevel(ours.level or errors.level)
        for handler in errors.handlers:
            ours.addHandler(handler)
