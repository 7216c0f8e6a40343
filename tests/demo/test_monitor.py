"""The live figures of the server, by their JSON snapshots.

Most tests run the demo in their own process, where a second takes no time.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import pytest

from greenws import ConnectionClosed, stats, testing
from run_server import make_routes

from ..support.demo import Watcher, connect, running
from ..support.limits import eventually, limit
from ..support.redis_server import RedisServer

TALKS = 40  # the kernel may buffer something for a client that does not read


class Demo:
    """The demo without a server, and a clock that stops unless somebody waits for a
    snapshot."""

    def __init__(self, clock: testing.Clock, websocket: Callable[..., testing.TestSocket]) -> None:
        self.clock = clock
        self._websocket = websocket
        self._routes = make_routes()

    def open(self, path: str, protocol: str) -> testing.TestSocket:
        return self._websocket(self._routes, path, subprotocols=[protocol], timeout=limit(20))

    def join(self, name: str) -> testing.TestSocket:
        member = self.open("/chat", "chat")
        member.send(json.dumps({"type": "join", "name": name}))
        assert json.loads(member.receive())["type"] == "welcome"
        assert json.loads(member.receive())["type"] == "joined"
        return member

    def watch(self) -> LocalWatcher:
        return LocalWatcher(self)


class LocalWatcher(Watcher):
    """A client that reads the snapshots, and waits for one that is not there yet."""

    def __init__(self, demo: Demo) -> None:
        self.socket = demo.open("/server/live", "live")
        self._clock = demo.clock

    def next(self) -> dict[str, Any]:
        try:
            text = self.socket.receive(timeout=0)
        except TimeoutError:
            self._clock.advance(1)
            text = self.socket.receive()
        snapshot = json.loads(text)
        assert isinstance(snapshot, dict)
        return snapshot


@pytest.fixture
def demo(
    websocket: Callable[..., testing.TestSocket], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Demo]:
    monkeypatch.setattr(stats, "_all", WeakSet())  # not the counters of other tests
    with testing.clock() as clock:
        yield Demo(clock, websocket)
        clock.advance(2)  # for the last look whether anybody watches


def test_a_snapshot_comes_at_once_and_then_each_second(demo: Demo) -> None:
    watch = demo.watch()
    first = json.loads(watch.socket.receive(timeout=0))
    demo.clock.advance(0.9)
    with pytest.raises(TimeoutError):
        watch.socket.receive(timeout=0)
    second, third = watch.next(), watch.next()
    assert abs(first["time"] - time.time() * 1000) < 60_000
    assert second["time"] - first["time"] == third["time"] - second["time"] == 1000
    process = third["process"]
    assert process["pid"] == os.getpid()
    assert process["one_of_several"] is False
    assert process["started"] == first["process"]["started"] <= first["time"]
    assert 2**20 < process["memory"] < 2**33
    assert first["rates"] is None
    assert third["rates"]["messages_out"] == 1  # this one client's snapshots
    assert third["rates"]["messages_in"] == 0
    assert third["server"]["connections_open"] == 1
    assert third["largest_rooms"] == third["slow_members"] == []


def test_snapshots_count_connections_messages_refusals_and_closes(demo: Demo) -> None:
    watch = demo.watch()
    before = watch.next()["server"]
    assert (before["connections_open"], before["messages_in"], before["refused"]) == (1, 0, {})
    ada, echo = demo.join("Ada"), demo.open("/echo", "echo")
    for number in range(20):
        echo.send(f"message {number}")
        assert echo.receive()
    with pytest.raises(testing.Refused):
        demo.open("/echo", "other")
    echo.close(4001)
    snapshot = watch.wait_for(lambda snapshot: snapshot["server"]["closes"])
    server = snapshot["server"]
    assert (server["connections_open"], server["connections_total"]) == (2, 3)
    assert server["messages_in"] == 1 + 20  # Ada joined
    assert server["messages_out"] > 20
    assert server["refused"] == {"subprotocol": 1}
    assert server["closes"] == {"4000": 1}  # of applications, by range
    assert snapshot["largest_rooms"] == [{"name": "lobby", "members": 1}]
    assert snapshot["rooms"]["members"] == 1
    ada.close()
    watch.wait_for(lambda snapshot: snapshot["largest_rooms"] == [])


def test_rates_are_the_changes_per_second(demo: Demo) -> None:
    watch, echo = demo.watch(), demo.open("/echo", "echo")
    snapshots = [watch.next()]
    for _ in range(2):
        for _ in range(50):
            echo.send("x" * 100)
            assert echo.receive()
        snapshots.append(watch.next())
    snapshots.append(watch.next())
    for one, other in itertools.pairwise(snapshots):
        for name in ("messages_in", "messages_out", "bytes_in", "bytes_out"):
            change = other["server"][name] - one["server"][name]
            assert other["rates"][name] == pytest.approx(change)
    assert snapshots[-1]["server"]["messages_in"] == 100


def test_a_new_watcher_gets_the_last_minute_first(demo: Demo) -> None:
    first = demo.watch()
    seen = [first.next() for _ in range(3)]
    second = demo.watch()
    assert [second.next() for _ in range(3)] == seen
    assert second.next() == first.next()
    echo = demo.open("/echo", "echo")  # the server goes on
    for each in (first, second):
        each.socket.close()
    third = demo.watch()  # the snapshots continue where they stopped
    assert third.next() == seen[0]
    third.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 4)
    echo.close()


def test_a_snapshot_lists_lagging_members_and_counts_those_closed(demo: Demo) -> None:
    sloth, ada, watch = demo.join("Sloth"), demo.join("Ada"), demo.watch()
    assert watch.next()["slow_members"] == []
    sloth.stall()

    def talk(until: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Send fewer messages between two snapshots than a member's queue holds."""
        for _ in range(TALKS):
            for _ in range(100):
                ada.send(json.dumps({"type": "message", "text": "\u00fc" * 2000}))
                ada.receive()
            if until(snapshot := watch.next()):
                return snapshot
        raise AssertionError(snapshot)

    snapshot = talk(until=lambda snapshot: snapshot["slow_members"])
    assert snapshot["rooms"]["lagging"] == 1
    [slow] = snapshot["slow_members"]
    assert (slow["name"], slow["room"]) == ("Sloth", "lobby")
    assert 0 < slow["waiting"] <= 200
    snapshot = talk(until=lambda snapshot: snapshot["rooms"]["closed"])
    assert snapshot["rooms"]["lagging"] == 0
    assert snapshot["slow_members"] == []
    sloth.resume()
    with pytest.raises(ConnectionClosed, match="1013"):
        while True:
            sloth.receive()


def test_no_snapshot_is_made_while_nobody_watches(demo: Demo) -> None:
    echo, first = demo.open("/echo", "echo"), demo.watch()
    seen = [first.next() for _ in range(2)]
    first.socket.close()
    demo.clock.advance(30)
    second = demo.watch()
    replayed = [second.next() for _ in range(len(seen))]
    assert replayed == seen
    after = second.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 3)
    assert after["time"] - seen[-1]["time"] >= 30_000
    assert after["rates"] is None
    echo.close()


def test_with_redis_watchers_get_the_snapshots_of_every_process(redis: RedisServer) -> None:
    options = ("--port", "0", "--redis", redis.url)
    with running(*options) as one, running(*options) as other:
        pids = {one.process.pid, other.process.pid}
        with connect(one.ws_url + "/server/live", "live") as connection:
            watch = Watcher(connection)
            seen: dict[int, dict[str, Any]] = {}
            count = 0
            with connect(other.ws_url + "/chat", "chat") as ada:
                ada.send(json.dumps({"type": "join", "name": "Ada"}))
                while seen.keys() != pids or not seen[other.process.pid]["largest_rooms"]:
                    snapshot = watch.next()
                    seen[snapshot["process"]["pid"]] = snapshot
                    count += 1
            assert seen[one.process.pid]["server"]["connections_open"] == 1
            assert seen[other.process.pid]["server"]["connections_open"] == 1
            assert not seen[one.process.pid]["process"]["one_of_several"]
        with connect(other.ws_url + "/server/live", "live") as connection:
            replayed = [Watcher(connection).next() for _ in range(count)]
            assert {snapshot["process"]["pid"] for snapshot in replayed} == pids  # the last minute

        def grows() -> bool:
            length = redis.call("XLEN", "greenws:demo-server:room:all")
            time.sleep(1.5)  # nothing tells that nothing happens
            return bool(redis.call("XLEN", "greenws:demo-server:room:all") != length)

        eventually(grows, False)
