"""Keepalive for all sockets of a hub: sends pings, ends connections whose peer does not answer,
polls the input of sockets that no greenlet reads, and closes sessions whose time is over.

A socket does not have its own timer. Its ``Pulse`` is in a bucket with others that are due at about
the same time, and the ``Heartbeat`` of the hub has one timer, for the first bucket. The width of a
bucket is a sixteenth of the shortest interval. Any byte from a peer shows that it is alive, not
only a pong: on a slow line, a pong that follows a large message arrives late.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import random
import time
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary, ref

from gevent.hub import Hub

from .config import Config
from .hub import forks
from .hub.delivery import Delivery
from .hub.transport import Transport
from .hub.turns import SECONDS, after_poll
from .opcodes import CloseCode
from .protocol.connection import Ping
from .websocket import WebSocket

__all__ = ["Heartbeat", "Pulse", "TimedPing", "open_sockets", "start_pulse"]

_POLL_INPUT_INTERVAL = 5.0  # seconds between two polls of a socket's input
_MORE_INPUT_INTERVAL = 0.1  # seconds, where there was more input than time
_CLOSING_INTERVAL = 0.5  # seconds between two polls while a Close waits for the peer's
_LIFETIME_WIDTH = 1 / 16  # seconds that a session may last longer than its lifetime
_LIFETIME_SPREAD = 0.1  # the part of max_lifetime that may be taken off, at random
_TURN = SECONDS  # of beats, before the loop polls the kernel
_FOREVER = float("inf")
_random_bits = random.Random().getrandbits  # no system calls, and independent of random.seed()
_NO_BUCKET: set[Any] = set()

_logger = logging.getLogger("greenws.session")

forks.load()


class TimedPing(Ping):
    """A ping that tells ``pulse`` when its pong arrives."""

    def __init__(self, pulse: Pulse) -> None:
        # Not by Ping's constructor: that call would be half of this one.
        self.payload = _random_bits(32).to_bytes(4, "big")
        self.wanted = self.answered = False
        self._pulse = pulse
        self._sent = time.monotonic()
        self._end = 0

    def answer(self) -> None:
        self.answered = True
        self._pulse._take_pong(time.monotonic() - self._sent, self._end)


class Pulse:
    """The keepalive state of one socket. It does not keep the socket in memory."""

    __slots__ = (
        "_bytes_in",
        "_close_at",
        "_deadline",
        "_delivered",
        "_delivery",
        "_heartbeat",
        "_interval",
        "_lifetime_end",
        "_next_ping",
        "_ping_begin",
        "_socket",
        "_timeout",
        "bucket",
        "expired",
        "latency",
        "timed_out",
        "width",
    )

    def __init__(self, socket: WebSocket, config: Config, heartbeat: Heartbeat) -> None:
        self._socket = ref(socket)
        self._heartbeat = heartbeat
        self._interval = _FOREVER if config.ping_interval is None else config.ping_interval
        self._timeout = _FOREVER if config.ping_timeout is None else config.ping_timeout
        now = time.monotonic()
        self._next_ping = now + self._interval
        self._deadline = _FOREVER
        self._delivery: Delivery | None = None  # of what was sent before the unanswered ping
        # Positions in what was sent, in bytes.
        self._ping_begin = 0  # of the first ping without an answer
        self._delivered = 0  # the end of the last ping that was answered
        self._bytes_in = 0
        # Without a lifetime, no random number is needed.
        lifetime = config.max_lifetime
        spread = 0.0 if lifetime is None else random.uniform(0, _LIFETIME_SPREAD)
        self._lifetime_end = _FOREVER if lifetime is None else now + lifetime * (1 - spread)
        self._close_at: tuple[float, int, str] | None = None  # a time of time.time()
        self.latency: float | None = None
        self.timed_out = False
        self.expired = False
        first = _POLL_INPUT_INTERVAL if _POLL_INPUT_INTERVAL < self._interval else self._interval
        width = (first if first < self._timeout else self._timeout) / 16
        self.width = width
        self.bucket: set[Pulse] = _NO_BUCKET
        begin = (now + first) // width * width
        if self._lifetime_end < begin:
            begin = self._bucket_time(now, begin)
        self._heartbeat.add(self, begin)

    @property
    def socket(self) -> WebSocket | None:
        return self._socket()

    def stop(self) -> None:
        """Ends keepalive for the socket."""
        self._heartbeat.remove(self)

    def close_at(self, when: float | None, code: int, reason: str) -> None:
        """Closes the socket at ``when``, a time of ``time.time()``; None: never."""
        self._close_at = None if when is None else (when, code, reason)
        if when is not None:
            self._heartbeat.remove(self)
            next_beat = self.beat(time.monotonic())
            if next_beat != _FOREVER:
                self._heartbeat.add(self, next_beat)

    def _take_pong(self, latency: float, end: int) -> None:
        """Notes the answer to a ping, after ``latency`` seconds. The peer has received the ping,
        and all that was sent before its ``end``."""
        self.latency = latency
        self._delivered = end

    def beat(self, now: float) -> float:
        """Does what is due; returns the time of the bucket for what is due next, ``inf`` if the
        connection is closed."""
        socket = self._socket()
        if socket is None:
            return _FOREVER
        is_open = socket.is_connected
        if is_open and now >= self._end(now):
            self._expire(socket, now)
            is_open = socket.is_connected
        if not is_open:
            is_closing = socket._pursue_close(now, _CLOSING_INTERVAL)
            return now + _CLOSING_INTERVAL if is_closing else _FOREVER
        due = self._keep_alive(socket, now)
        return due if due == _FOREVER else self._bucket_time(now, due)

    def _end(self, now: float) -> float:
        """The time at which the socket must be closed, as known now."""
        return min(self._lifetime_end, self._chosen_end(now))

    def _chosen_end(self, now: float) -> float:
        """The time of ``close_at``. Its clock may jump, so it is read at each beat."""
        return _FOREVER if self._close_at is None else now + self._close_at[0] - time.time()

    def _bucket_time(self, now: float, when: float) -> float:
        """The time of the bucket for something due at ``when``: that time, or up to a width
        earlier. The end of a session is never early."""
        begin = when // self.width * self.width
        end = self._end(now)
        return (
            min(begin, math.ceil(end / _LIFETIME_WIDTH) * _LIFETIME_WIDTH) if end < begin else begin
        )

    def _expire(self, socket: WebSocket, now: float) -> None:
        self.expired = True
        if self._close_at is None or self._lifetime_end <= self._chosen_end(now):
            code, reason, option = int(CloseCode.GOING_AWAY), "max_lifetime", "max_lifetime"
        else:
            (_, code, reason), option = self._close_at, "close_at"
        _logger.info("closing the session of %r with %d (%s)", socket.remote_address, code, option)
        socket.start_closing(code, reason)

    def _keep_alive(self, socket: WebSocket, now: float) -> float:
        soon = now + self.width
        latest = now + (_MORE_INPUT_INTERVAL if socket._poll_unread() else _POLL_INPUT_INTERVAL)
        transport = socket._transport
        if transport.received != self._bytes_in:
            self._bytes_in = transport.received
            self._deadline = _FOREVER
        elif self._delivery is not None and self._delivery.has_progressed():
            # The ping waits for earlier data, which a slow peer is still reading.
            self._deadline = now + self._timeout
        elif self._deadline < soon:
            # While the kernel holds input that we do not receive, the pong may be in it. TCP itself
            # finds out if the peer is gone, because our pings need acknowledgements.
            if not socket._has_unread_input():
                self.timed_out = True
                socket._mark_lost(
                    f"no data within {self._timeout:g} s after a ping{self._fate(transport)}"
                )
                return _FOREVER
            self._deadline = now + self._timeout
        if self._next_ping < soon and socket.is_connected:
            # A ping would wait in the outbox, and write_timeout watches that already.
            if not transport.backlog:
                if self._deadline == _FOREVER:
                    self._ping_begin = transport.sent
                    self._delivery = (
                        None if transport.sent == self._delivered else transport.watch_delivery()
                    )
                ping = TimedPing(self)
                socket._send_heartbeat(ping)
                ping._end = transport.sent
                self._deadline = min(self._deadline, now + self._timeout)
            self._next_ping = now + self._interval
        return min(self._next_ping, self._deadline, latest)

    def _fate(self, transport: Transport) -> str:
        """The end of the log text: whether the ping was acknowledged, and the option."""
        acknowledged = transport.has_acknowledged(self._ping_begin)
        if acknowledged is None:
            return " (ping_timeout)"
        if acknowledged:
            return ", which the peer's TCP has acknowledged (ping_timeout)"
        return ", which the peer's TCP has not acknowledged (ping_timeout)"


class Heartbeat:
    """The pulses of a hub, ordered by when they are due."""

    def __init__(self, loop: Any) -> None:
        self.process = forks.process()
        self._loop = loop
        self._buckets: dict[float, set[Pulse]] = {}
        self._times: list[float] = []  # the keys of the buckets, as a heap
        self._due: deque[Pulse] = deque()
        self._timer: Any = None
        self._timer_time = _FOREVER
        self._rest_timer: Any = None

    def pulses(self) -> list[Pulse]:
        """All pulses."""
        return [*self._due, *(pulse for bucket in self._buckets.values() for pulse in bucket)]

    def use_loop(self, loop: Any) -> None:
        """Makes timers with ``loop``: a special one while ``greenws.testing`` controls time."""
        if loop is not self._loop:
            self._loop = loop
            self._timer_time = -1.0
            self._arm()

    def add(self, pulse: Pulse, begin: float) -> None:
        """Schedules ``pulse`` for the bucket of ``begin`` (``time.monotonic()``)."""
        bucket = self._buckets.get(begin)
        if bucket is None:
            bucket = self._buckets[begin] = set()
            heapq.heappush(self._times, begin)
            self._arm()
        bucket.add(pulse)
        pulse.bucket = bucket

    def remove(self, pulse: Pulse) -> None:
        """Unschedules ``pulse``."""
        bucket = pulse.bucket
        bucket.discard(pulse)
        if not bucket:
            while self._times and not self._buckets[self._times[0]]:
                del self._buckets[heapq.heappop(self._times)]
            self._arm()

    def _arm(self) -> None:
        """Sets the timer to the time of the first bucket."""
        if self.process != forks.process():
            self.stop()
            return
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

    def stop(self) -> None:
        """Drops all pulses."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        self._times.clear()
        self._buckets.clear()
        self._due.clear()

    def _on_timer(self) -> None:
        if self.process != forks.process():
            self.stop()
            return
        now = time.monotonic() + 0.001
        while self._times and self._times[0] <= now:
            self._due.extend(self._buckets.pop(heapq.heappop(self._times)))
        self._timer_time = -1.0
        self._arm()
        self._beat()

    def _beat(self) -> None:
        if self.process != forks.process():
            self.stop()
            return
        if self._rest_timer is not None:
            self._rest_timer.close()
            self._rest_timer = None
        now = time.monotonic()
        end = now + _TURN
        try:
            while self._due and now < end:
                pulse = self._due.popleft()
                pulse.bucket.discard(pulse)  # close_at() may have put it into another
                pulse.bucket = _NO_BUCKET
                next_beat = pulse.beat(now)
                now = time.monotonic()
                if next_beat != _FOREVER:
                    self.add(pulse, next_beat)
        finally:  # an error in one pulse must not stop the others
            if self._due:
                self._rest_timer = after_poll(self._loop, self._beat)


_ATTRIBUTE = "_greenws_heartbeat"  # of a hub

_heartbeats: WeakKeyDictionary[Hub, Heartbeat] = WeakKeyDictionary()


def _after_fork() -> None:
    """In the child: drops the parent's heartbeat, but keeps one that an earlier hook started."""
    for hub, heartbeat in list(_heartbeats.items()):
        if heartbeat.process != forks.process():
            del _heartbeats[hub]
            if hub.loop is not None:  # otherwise it was destroyed, with the timers
                heartbeat.stop()


def drop_heartbeat(hub: Hub) -> None:
    """Ends the connections of ``hub`` that are open, as lost: nobody could read from them. Call it
    before the hub is destroyed."""
    heartbeat = _heartbeats.pop(hub, None)
    if heartbeat is None:
        return
    for pulse in heartbeat.pulses():
        socket = pulse.socket
        if socket is not None:
            socket._end_with_hub("the hub of its thread has ended")
    heartbeat.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_sockets() -> list[WebSocket]:
    """The open sockets of this process, of servers and clients."""
    pulses = [pulse for heartbeat in list(_heartbeats.values()) for pulse in heartbeat.pulses()]
    sockets = [pulse.socket for pulse in pulses]
    return [socket for socket in sockets if socket is not None and socket.is_connected]


def start_pulse(socket: WebSocket, hub: Hub, config: Config) -> None:
    """Starts keepalive for ``socket``, until ``socket._pulse.stop()``."""
    # The attribute saves a look-up in Python code.
    heartbeat: Heartbeat | None = getattr(hub, _ATTRIBUTE, None)
    if heartbeat is None or heartbeat.process != forks.process():
        heartbeat = _heartbeats[hub] = Heartbeat(hub.loop)
        setattr(hub, _ATTRIBUTE, heartbeat)
    elif heartbeat._loop is not hub.loop:
        heartbeat.use_loop(hub.loop)
    socket._pulse = Pulse(socket, config, heartbeat)
