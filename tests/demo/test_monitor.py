"""The live figures of the server, by their JSON snapshots."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from ..support.demo import (
    ClientFactory,
    Demo,
    MemberFactory,
    Watcher,
    WatcherFactory,
    closed_with,
    connect,
    narrow_socket,
    running,
)
from ..support.limits import limit
from ..support.redis_server import RedisServer

TALKS = 40  # the kernel may buffer a lot for a client that does not read


def test_a_snapshot_comes_at_once_and_then_each_second(demo: Demo, watcher: WatcherFactory) -> None:
    watch = watcher()
    first, second, third = watch.next(), watch.next(), watch.next()
    assert abs(first["time"] - time.time() * 1000) < 60_000
    assert 900 < second["time"] - first["time"] < 10_000
    assert second["time"] < third["time"]
    process = third["process"]
    assert process["pid"] == demo.process.pid
    assert process["one_of_several"] is False
    assert process["started"] == first["process"]["started"] <= first["time"]
    assert 2**20 < process["memory"] < 2**30
    assert first["rates"] is None
    assert 0 < third["rates"]["messages_out"] < 2  # this one client's snapshots
    assert third["rates"]["messages_in"] == 0
    assert third["server"]["connections_open"] == 1
    assert third["largest_rooms"] == third["slow_members"] == []


def test_snapshots_count_connections_messages_refusals_and_closes(
    watcher: WatcherFactory, member: MemberFactory, client: ClientFactory
) -> None:
    watch = watcher()
    before = watch.next()["server"]
    assert (before["connections_open"], before["messages_in"], before["refused"]) == (1, 0, {})
    ada, echo = member("Ada"), client("/echo", "echo")
    for number in range(20):
        echo.send(f"message {number}")
        assert echo.recv(timeout=limit(20))
    with pytest.raises(InvalidStatus):
        client("/echo", "other")
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
    ada.connection.close()
    watch.wait_for(lambda snapshot: snapshot["largest_rooms"] == [])


def test_rates_are_the_changes_per_second(watcher: WatcherFactory, client: ClientFactory) -> None:
    watch, echo = watcher(), client("/echo", "echo")
    snapshots = [watch.next()]
    for _ in range(2):
        for _ in range(50):
            echo.send("x" * 100)
            assert echo.recv(timeout=limit(20))
        snapshots.append(watch.next())
    snapshots.append(watch.next())
    for one, other in itertools.pairwise(snapshots):
        seconds = (other["time"] - one["time"]) / 1000
        for name in ("messages_in", "messages_out", "bytes_in", "bytes_out"):
            change = other["server"][name] - one["server"][name]
            assert other["rates"][name] == pytest.approx(change / seconds, rel=0.2)
    assert snapshots[-1]["server"]["messages_in"] == 100


def test_a_new_watcher_gets_the_last_minute_first(watcher: WatcherFactory) -> None:
    first = watcher()
    seen = [first.next() for _ in range(3)]
    second = watcher()
    assert [second.next() for _ in range(3)] == seen
    assert second.next() == first.next()
    for each in (first, second):
        each.connection.close()
    third = watcher()  # the snapshots continue where they stopped
    assert third.next() == seen[0]
    third.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 3)


def test_a_snapshot_lists_lagging_members_and_counts_those_closed(
    demo: Demo, watcher: WatcherFactory, member: MemberFactory
) -> None:
    sloth = member("Sloth", sock=narrow_socket(demo), compression=None)
    ada, watch = member("Ada"), watcher()
    assert watch.next()["slow_members"] == []

    def talk(until: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Send fewer messages between two snapshots than a member's queue holds."""
        for _ in range(TALKS):
            for _ in range(100):
                ada.say("\u00fc" * 2000)
                ada.expect(type="message")
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
    assert closed_with(sloth.connection) == 1013


def test_no_snapshot_is_made_while_nobody_watches(demo: Demo, watcher: WatcherFactory) -> None:
    first = watcher()
    seen = [first.next() for _ in range(2)]
    first.connection.close()
    time.sleep(2.5)  # nothing tells that nothing happens
    second = watcher()
    replayed = [second.next() for _ in range(len(seen))]
    assert replayed == seen
    after = second.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 2)
    assert after["time"] - seen[-1]["time"] > 2400
    assert after["rates"] is None


def test_with_redis_watchers_get_the_snapshots_of_every_process(redis: RedisServer) -> None:
    options = ("--port", "0", "--redis", redis.url)
    with running(*options) as one, running(*options) as other:
        pids = {one.process.pid, other.process.pid}
        with connect(one.ws_url + "/server/live", "live") as connection:
            watch = Watcher(connection)
            seen: dict[int, dict[str, Any]] = {}
            with connect(other.ws_url + "/chat", "chat") as ada:
                ada.send(json.dumps({"type": "join", "name": "Ada"}))
                while seen.keys() != pids or not seen[other.process.pid]["largest_rooms"]:
                    snapshot = watch.next()
                    seen[snapshot["process"]["pid"]] = snapshot
            assert seen[one.process.pid]["server"]["connections_open"] == 1
            assert seen[other.process.pid]["server"]["connections_open"] == 1
            assert not seen[one.process.pid]["process"]["one_of_several"]
        with connect(other.ws_url + "/server/live", "live") as connection:
            replayed = [Watcher(connection).next() for _ in range(4)]
            assert {snapshot["process"]["pid"] for snapshot in replayed} == pids  # the last minute
        log = "greenws:demo-server:room:all"
        time.sleep(1.5)  # nothing tells that nothing happens
        length = redis.call("XLEN", log)
        time.sleep(1.5)
        assert redis.call("XLEN", log) == length
