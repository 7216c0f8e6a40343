"""``/metrics`` for Prometheus: what the rooms of all workers have counted.

The counters themselves are plain integers; they are copied to prometheus_client when somebody asks,
and every second where many workers share one answer (``PROMETHEUS_MULTIPROC_DIR``), since any of
them may be asked for all.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gevent
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..rooms import Rooms

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Metrics"]

_COPY_EVERY = 1.0  # seconds
_GAUGES = {
    "members": "Members of rooms at present",
    "lagging": "Members that lag at present",
}
_COUNTERS = {
    "sent": "Messages sent to rooms",
    "delivered": "Messages handed to members",
    "dropped": "Messages dropped for members that lag",
    "closed": "Members closed with 1013, because they read too slowly",
}


class Metrics:
    """A WSGI application that answers with the metrics of ``rooms``.

    Several workers need ``PROMETHEUS_MULTIPROC_DIR``, an empty directory that they share, in the
    environment before this module is imported (see prometheus_client's documentation).
    """

    def __init__(self, rooms: Rooms) -> None:
        self._stats = rooms.stats
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"greenws_rooms_{name}", text, registry=self._registry)
            for name, text in _COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(
                f"greenws_rooms_{name}",
                text,
                registry=self._registry,
                multiprocess_mode="livesum",
            )
            for name, text in _GAUGES.items()
        }
        self._copied = dict.fromkeys(_COUNTERS, 0)
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._copier: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Lets this worker be counted before it is asked. Call it in each worker, not before the
        fork."""
        if self._folder and self._copier is None:
            self._copier = gevent.spawn(self._keep_copying)

    def stop(self) -> None:
        if self._copier is not None:
            self._copier.kill()
            self._copier = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.start()
        self._copy()
        registry = self._registry
        if self._folder:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        body = generate_latest(registry)
        headers = [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    def _keep_copying(self) -> None:
        while True:
            self._copy()
            gevent.sleep(_COPY_EVERY)

    def _copy(self) -> None:
        now: dict[str, Any] = dataclasses.asdict(self._stats)
        for name, gauge in self._gauges.items():
            gauge.set(now[name])
        for name, counter in self._counters.items():
            counter.inc(now[name] - self._copied[name])
            self._copied[name] = now[name]
