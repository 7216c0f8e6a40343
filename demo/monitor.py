"""Live figures of this process: one snapshot a second, for everybody who watches."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import gevent

from greenws import Rooms, WebSocket, policies
from greenws.brokers import Broker, BrokerUnavailable
from greenws.brokers.memory import MemoryBroker
from greenws.stats import of_this_process, total

MINUTE = 60  # snapshots, one a second, that a new watcher is sent at once
MAX_LISTED = 20  # rooms and slow members in a snapshot
MAX_LISTED_NAME = 80  # characters of a room's name in a snapshot
RATED = ("messages_in", "messages_out", "bytes_in", "bytes_out")


class Monitor:
    """Sends a snapshot of this process to its watchers once a second. With ``redis``, the watchers
    at other processes get it too, and the watchers here get theirs.

    A snapshot is a JSON object:

    - "time": milliseconds since 1970; never decreases
    - "process": "id", "pid", "started" (like "time"), "memory" (bytes, or null), and
      "one_of_several": whether there are other workers whose snapshots do not arrive here
    - "server": connections, messages, bytes, refusals and closes, as in ``Stats.as_dict()``
    - "rates": messages and bytes of "server" per second; null in the first snapshot
    - "rooms": the counters of the rooms, :class:`greenws.rooms.Stats`
    - "largest_rooms": [{"name", "members"}], the rooms with members in this process; "members"
      counts those in all processes
    - "slow_members": [{"name", "room", "waiting"}], the lagging members of this process and the
      number of messages queued for each
    """

    def __init__(self, rooms: Rooms, redis: str | None, one_of_several: bool) -> None:
        self._rooms = rooms
        self._id = secrets.token_hex(6)
        self._one_of_several = one_of_several and not redis
        self._started = int(time.time() * 1000)
        self._offset = self._started - time.monotonic() * 1000  # the wall clock may be set back
        broker: Broker = MemoryBroker(history=MINUTE, max_age=MINUTE)
        if redis:
            from greenws.brokers.redis import RedisBroker

            broker = RedisBroker(redis, prefix="greenws:demo-server:", max_age=MINUTE)
        # A watcher on a slow connection needs only the newest snapshot of each process.
        newest = policies.coalesce(lambda snapshot: json.loads(snapshot)["process"]["id"])
        self._watchers = Rooms(broker, policy=newest)["all"]
        self._ticker: gevent.Greenlet[[], None] | None = None
        self._is_shared = broker.is_shared
        if self._is_shared:  # there may be watchers at other processes
            self._ticker = gevent.spawn(self._tick)

    def serve(self, socket: WebSocket) -> None:
        """Serve one watcher until its connection ends."""
        with self._watchers.join(socket, since="0-0"):  # replays the last minute, then goes on live
            if not self._ticker:
                self._ticker = gevent.spawn(self._tick)
            for _ in socket:
                pass  # watchers have nothing to ask

    def _tick(self) -> None:
        """Runs while there may be watchers."""
        last: dict[str, Any] = {}
        last_time = 0.0
        while True:
            if len(self._watchers):
                figures, now = total(of_this_process()), time.monotonic()
                rates = {
                    name: (figures[name] - last[name]) / (now - last_time) for name in RATED if last
                }
                with contextlib.suppress(BrokerUnavailable):
                    self._watchers.send(json.dumps(self._snapshot(figures, rates or None)))
                last, last_time = figures, now
            elif self._is_shared:
                last = {}
            else:
                return
            gevent.sleep(1)

    def _snapshot(self, figures: dict[str, Any], rates: dict[str, float] | None) -> dict[str, Any]:
        rooms: list[dict[str, Any]] = []
        slow: list[dict[str, Any]] = []
        for room in self._rooms:
            name = room.name[:MAX_LISTED_NAME]
            rooms.append({"name": name, "members": len(room)})
            for member in room.lagging:
                who = member.info.get("name")
                slow.append({"name": who, "room": name, "waiting": member.waiting})
        rooms.sort(key=lambda each: each["members"], reverse=True)
        slow.sort(key=lambda each: each["waiting"], reverse=True)
        return {
            "time": int(self._offset + time.monotonic() * 1000),
            "process": {
                "id": self._id,
                "pid": os.getpid(),
                "started": self._started,
                "memory": _resident_memory(),
                "one_of_several": self._one_of_several,
            },
            "server": figures,
            "rates": rates,
            "rooms": dataclasses.asdict(self._rooms.stats),
            "largest_rooms": rooms[:MAX_LISTED],
            "slow_members": slow[:MAX_LISTED],
        }


def _resident_memory() -> int | None:
    """Bytes of this process in RAM, on systems with /proc (Linux)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
