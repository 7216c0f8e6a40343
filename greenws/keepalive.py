"""One heartbeat for all sockets of a hub: it pings, drops who does not answer, and looks at the
input for those that nobody reads.

A socket has no timer. Its ``Pulse`` stands in the bucket of the time when something is next due
for it; there is one timer, for the first bucket, and a bucket is as wide as a sixteenth of the
shortest interval, so that sockets share them. Whatever a peer sends shows that it lives, not only a
pong: behind a large message on a slow line the pong comes late, and bytes that arrive are counted
anyway.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary, ref

from gevent.hub import Hub

from .config import Config
from .protocol.connection import Ping
from .websocket import WebSocket

__all__ = ["Heartbeat", "Pulse", "TimedPing", "start_pulse"]

_LOOK_EVERY = 5.0  # seconds after which the input of a socket that nobody reads is looked at
_BATCH = 200  # sockets in a row, before the hub gets its turn
_FOREVER = float("inf")
_NO_BUCKET: set[Any] = set()


class TimedPing(Ping):
    """A ping that tells ``pulse`` how many seconds its answer took."""

    __slots__ = ("_pulse", "_sent")

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(os.urandom(4), False)
        self._pulse = pulse
        self._sent = time.monotonic()

    def answer(self) -> None:
        super().answer()
        self._pulse.latency = time.monotonic() - self._sent


class Pulse:
    """What the heartbeat knows of one socket. It does not keep the socket alive."""

    __slots__ = (
        "_deadline",
        "_heard",
        "_heartbeat",
        "_interval",
        "_next_ping",
        "_socket",
        "_timeout",
        "bucket",
        "latency",
        "timed_out",
        "width",
    )

    def __init__(self, socket: WebSocket, config: Config, heartbeat: Heartbeat) -> None:
        self._socket = ref(socket)
        self._heartbeat = heartbeat
        self._interval = _FOREVER if config.ping_interval is None else config.ping_interval
        self._timeout = _FOREVER if config.ping_timeout is None else config.ping_timeout
        self._next_ping = time.monotonic() + self._interval
        self._deadline = _FOREVER
        self._heard = 0
        self.latency: float | None = None
        self.timed_out = False
        self.width = min(self._interval, self._timeout, _LOOK_EVERY) / 16
        self.bucket: set[Pulse] = _NO_BUCKET
        heartbeat.add(self, min(self._next_ping, time.monotonic() + _LOOK_EVERY))

    def stop(self) -> None:
        """Nothing is due any more."""
        self._heartbeat.remove(self)

    def beat(self, now: float) -> float:
        """Does what is due, and says when something is next; ``inf`` if the connection is over."""
        socket = self._socket()
        if socket is None or not socket.is_connected:
            return _FOREVER
        soon = now + self.width
        socket.look()
        traffic = socket.traffic
        if traffic.bytes_in != self._heard:
            self._heard = traffic.bytes_in
            self._deadline = _FOREVER
        elif self._deadline < soon:
            # Where we do not take what stands in the kernel, the silence is ours. Our pings wait
            # for TCP's acknowledgements there, so TCP itself finds out who is gone.
            if not socket.has_unread_input():
                self.timed_out = True
                socket.lose(f"nothing came within {self._timeout:g} s of a ping (ping_timeout)")
                return _FOREVER
            self._deadline = now + self._timeout
        if self._next_ping < soon and socket.is_connected:
            # Behind a backlog a ping would measure the backlog, and write_timeout watches that.
            if not socket.has_backlog:
                socket.send_heartbeat(TimedPing(self))
                self._deadline = min(self._deadline, now + self._timeout)
            self._next_ping = now + self._interval
        return min(self._next_ping, self._deadline, now + _LOOK_EVERY)


class Heartbeat:
    """The pulses of a hub, by the time when they are due."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._buckets: dict[float, set[Pulse]] = {}
        self._times: list[float] = []  # of the buckets; a heap
        self._due: deque[Pulse] = deque()
        self._timer: Any = None
        self._timer_time = _FOREVER

    def add(self, pulse: Pulse, when: float) -> None:
        """Has ``pulse`` beat at ``when`` (``time.monotonic()``), or up to its width earlier."""
        begin = when // pulse.width * pulse.width
        bucket = self._buckets.get(begin)
        if bucket is None:
            bucket = self._buckets[begin] = set()
            heapq.heappush(self._times, begin)
            self._arm()
        bucket.add(pulse)
        pulse.bucket = bucket

    def remove(self, pulse: Pulse) -> None:
        """Forgets ``pulse``."""
        pulse.bucket.discard(pulse)
        while self._times and not self._buckets[self._times[0]]:
            del self._buckets[heapq.heappop(self._times)]
        self._arm()

    def _arm(self) -> None:
        """Sets the timer for the first bucket."""
        first = self._times[0] if self._times else _FOREVER
        if first == self._timer_time:
            return
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        self._timer_time = first
        if first != _FOREVER:
            self._timer = self._loop.timer(max(0.0, first - time.monotonic()), ref=False)
            self._timer.start(self._on_timer)

    def _on_timer(self) -> None:
        now = time.monotonic() + 0.001
        while self._times and self._times[0] <= now:
            self._due.extend(self._buckets.pop(heapq.heappop(self._times)))
        self._timer_time = -1.0
        self._arm()
        self._beat()

    def _beat(self) -> None:
        try:
            for _ in range(min(_BATCH, len(self._due))):
                pulse = self._due.popleft()
                pulse.bucket = _NO_BUCKET
                following = pulse.beat(time.monotonic())
                if following != _FOREVER:
                    self.add(pulse, following)
        finally:  # what one of them raises is not the others' end
            if self._due:
                self._loop.run_callback(self._beat)


_heartbeats: WeakKeyDictionary[Hub, Heartbeat] = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):  # a child has a loop of its own
    os.register_at_fork(after_in_child=_heartbeats.clear)


def start_pulse(socket: WebSocket, hub: Hub, config: Config) -> None:
    """Has the heartbeat of ``hub`` care for ``socket``, until ``socket.pulse.stop()``."""
    heartbeat = _heartbeats.get(hub)
    if heartbeat is None:
        heartbeat = _heartbeats[hub] = Heartbeat(hub.loop)
    socket.pulse = Pulse(socket, config, heartbeat)
