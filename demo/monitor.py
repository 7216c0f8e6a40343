"""The live picture of the process: one snapshot a second to whoever watches."""

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

MINUTE = 60  # snapshots, one a second, that who comes to watch is sent at once
MAX_LISTED = 20  # rooms and slow members in a snapshot
MAX_LISTED_NAME = 80  # characters of a room's name in it
RATED = ("messages_in", "messages_out", "bytes_in", "bytes_out")


class Monitor:
    """Tells whoever watches, once a second, what this process does; with ``redis``, also those
    who watch at other processes, and them what those do.

    A snapshot is a JSON object:

    - "time": milliseconds since 1970, which never go back
    - "process": its "id", its "pid", when it "started" (likewise), its "memory" (bytes, or null),
      and whether it is "one_of_several" workers of which the others tell nothing here
    - "server": connections, messages, bytes, refusals and closes, as ``Stats.as_dict()`` gives them
    - "rates": of the messages and bytes among them, each second; null in the first snapshot
    - "rooms": what the rooms count, :class:`greenws.rooms.Stats`
    - "largest_rooms": [{"name", "members"}] of those with members here, the others included
    - "slow_members": [{"name", "room", "waiting"}], the messages that wait for those who lag
    """

    def __init__(self, rooms: Rooms, redis: str | None, one_of_several: bool) -> None:
        self._rooms = rooms
        self._id = secrets.token_hex(6)
        self._one_of_several = one_of_several and not redis
        self._started = int(time.time() * 1000)
        self._ahead = self._started - time.monotonic() * 1000  # of the clock that never goes back
        broker: Broker = MemoryBroker(history=MINUTE, max_age=MINUTE)
        if redis:
            from greenws.brokers.redis import RedisBroker

            broker = RedisBroker(redis, prefix="greenws:demo-server:", max_age=MINUTE)
        # One that watches over a slow line needs none but the newest snapshot of each process.
        newest = policies.coalesce(lambda snapshot: json.loads(snapshot)["process"]["id"])
        self._watchers = Rooms(broker, policy=newest)["all"]
        self._ticker: gevent.Greenlet[[], None] | None = None
        self._is_shared = broker.is_shared
        if self._is_shared:  # others may watch it
            self._ticker = gevent.spawn(self._tick)

    def attend(self, socket: WebSocket) -> None:
        """Serve one who watches until its connection ends."""
        with self._watchers.join(socket, since="0-0"):  # the last minute first, then go on live
            if not self._ticker:
                self._ticker = gevent.spawn(self._tick)
            for _ in socket:
                pass  # there is nothing to ask

    def _tick(self) -> None:
        """Runs while somebody may watch."""
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
            "time": int(self._ahead + time.monotonic() * 1000),
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
    """Bytes of this process that are in RAM, where /proc tells (Linux)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
