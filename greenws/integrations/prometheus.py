"""``/metrics`` for Prometheus: the counters of the servers and rooms of all workers.

The counters are plain integers. They are copied to prometheus_client at each scrape, and every
second where several workers share ``PROMETHEUS_MULTIPROC_DIR``, since any of them may be scraped
for all.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import gevent

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge
    from prometheus_client.core import Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector
except ImportError as error:
    hint = "pip install prometheus-client (or 'greenws-wsgi[metrics]')"
    raise ImportError(f"{error}; {hint}") from None

from ..opcodes import CloseCode
from ..rooms.room import Rooms
from ..stats import ServerStats, of_this_process, start_with_servers, stop_starting

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Metrics"]

_logger = logging.getLogger("greenws.metrics")

_COPY_EVERY = 1.0  # seconds
_GAUGES = {
    "connections_open": "WebSocket sessions that are open now",
    "rooms_members": "Members of rooms at present",
    "rooms_lagging": "Members that lag at present",
}
_COUNTERS = {
    "connections": "WebSocket sessions, open and ended",
    "messages_in": "Messages received",
    "messages_out": "Messages sent",
    "bytes_in": "Bytes of frames received",
    "bytes_out": "Bytes of frames sent",
    "pings_timed_out": "Sessions ended because a ping was not answered",
    "expired": "Sessions that max_lifetime or close_at() has ended",
    "rooms_sent": "Messages sent to rooms",
    "rooms_delivered": "Messages handed to members",
    "rooms_dropped": "Messages dropped for members that lag",
    "rooms_closed": "Members closed with 1013, because they read too slowly",
}
_LABELLED = {
    "refused": ("reason", "Upgrades that were refused"),
    "closes": (
        "code",
        "Sessions that ended, by the code of the first Close (1006: lost; 3000, 4000: the range)",
    ),
}
# These labels exist from the beginning, so that the first event is an increase that alerts notice.
_FROM_ZERO = (
    CloseCode.NORMAL,
    CloseCode.GOING_AWAY,
    CloseCode.ABNORMAL,
    CloseCode.POLICY_VIOLATION,
    CloseCode.MESSAGE_TOO_BIG,
    CloseCode.INTERNAL_ERROR,
    CloseCode.TRY_AGAIN_LATER,
)


class Metrics:
    """A WSGI application that answers with the metrics of ``rooms``, and of all servers of this
    process, or of those whose ``server.stats`` are given.

    Several workers need ``PROMETHEUS_MULTIPROC_DIR``, an empty directory that they share, in the
    environment before this module is imported (see prometheus_client's documentation). A worker
    with a ``WebSocketServer``, as under ``greenws.gunicorn.Worker``, counts from its start; other
    workers from their first scrape, or from :meth:`start` on. Make ``Metrics`` once, when the
    program is loaded: with a directory, a second one would count everything twice, and logs that.
    """

    _made_by = 0  # the process that has made one with a shared folder

    def __init__(
        self, rooms: Rooms | None = None, stats: Iterable[ServerStats] | None = None
    ) -> None:
        self._rooms = rooms
        self._stats = None if stats is None else list(stats)
        self._registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(
                f"greenws_{name}", text, registry=self._registry, multiprocess_mode="livesum"
            )
            for name, text in _GAUGES.items()
        }
        self._counters = {
            name: Counter(f"greenws_{name}", text, registry=self._registry)
            for name, text in _COUNTERS.items()
        }
        self._labelled = {
            name: Counter(f"greenws_{name}", text, [label], registry=self._registry)
            for name, (label, text) in _LABELLED.items()
        }
        self._copied: dict[tuple[str, str], int] = {}
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._copier: gevent.Greenlet[[], None] | None = None
        self._has_warned = False
        if self._folder and Metrics._made_by == os.getpid():
            _logger.warning(
                "this process has made Metrics() more than once, so figures are counted twice: "
                "make it once, when the module is loaded"
            )
        if self._folder:
            Metrics._made_by = os.getpid()
        start_with_servers(self)

    def start(self) -> None:
        """Makes this worker count before its first scrape. Call it after forks."""
        if self._folder and self._copier is None:
            self._copier = gevent.spawn(self._keep_copying)
            # Sessions that a stop ends are counted at exit.
            atexit.register(_copy_at_exit, weakref.ref(self), os.getpid())

    def stop(self) -> None:
        """Undoes :meth:`start`."""
        stop_starting(self)
        if self._copier is not None:
            self._copier.kill()
            self._copier = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.start()
        self._copy()
        if environ.get("wsgi.multiprocess") and not (self._folder or self._has_warned):
            self._has_warned = True
            _logger.warning(
                "these metrics are those of one worker: set PROMETHEUS_MULTIPROC_DIR to an empty "
                "directory to get those of all"
            )
        registry = self._registry
        if self._folder:
            registry = CollectorRegistry()
            registry.register(_AllWorkers(self._folder))
        body = generate_latest(registry)
        headers = [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    def _keep_copying(self) -> None:
        while True:
            self._copy()
            gevent.sleep(_COPY_EVERY)

    def _copy(self) -> None:
        now: dict[tuple[str, str], int] = {}
        for name, label, value in self._read():
            now[name, label] = now.get((name, label), 0) + value
        for key in self._copied.keys() - now.keys():
            self._copied[key] = 0
        for (name, label), value in now.items():
            if name in self._gauges:
                self._gauges[name].set(value)
                continue
            counter = self._labelled[name].labels(label) if label else self._counters[name]
            # The sums get smaller when a server is gone, but a counter must never go down.
            counter.inc(max(0, value - self._copied.get((name, label), 0)))
            self._copied[name, label] = value

    def _read(self) -> Iterator[tuple[str, str, int]]:
        """Each figure's name, label (empty where it has none) and value."""
        for known in _FROM_ZERO:
            yield "closes", str(int(known)), 0
        if self._rooms is not None:
            for name, value in dataclasses.asdict(self._rooms.stats).items():
                yield f"rooms_{name}", "", value
        for stats in of_this_process() if self._stats is None else self._stats:
            yield "connections_open", "", stats.connections_open
            yield "connections", "", stats.connections_total
            yield "pings_timed_out", "", stats.pings_timed_out
            yield "expired", "", stats.expired
            for name, value in stats.traffic._asdict().items():
                yield name, "", value
            for reason, value in stats.refused.items():
                yield "refused", reason, value
            for code, value in stats.closes.items():
                yield "closes", str(code), value


class _AllWorkers(Collector):
    """The figures in the files of all workers.

    A file is empty for a moment when its worker has just made it, and stays so if the worker is
    killed then. ``MultiProcessCollector.collect`` raises for it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with os.scandir(self._folder) as entries:
            files = [entry.path for entry in entries if entry.name.endswith(".db")]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(filter(_size, files))  # type: ignore[no-untyped-call]
        return metrics


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except FileNotFoundError:  # of a worker that has ended
        return 0


def _copy_at_exit(made: weakref.ref[Metrics], process: int) -> None:
    metrics = made()
    if metrics is not None and process == os.getpid():
        metrics._copy()
