"""The benchmark works, and its load generator notices a server that does not echo or broadcast."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .support.limits import again_after_standstill, limit, pace
from .support.paths import ROOT
from .support.processes import Process
from .support.require import require, require_program

pytestmark = pytest.mark.one_form

BENCHMARKS = ROOT / "benchmarks"
PROGRAM = """
import sys
from greenws import Rooms, Routes, WebSocketServer

routes = Routes()
rooms = Rooms()
change = {
    "/echo": lambda number, message: message,
    "/flipped": lambda number, message: bytes([message[0] ^ 1]) + message[1:],
    "/flipped-at-the-end": lambda number, message: message[:-1] + bytes([message[-1] ^ 128]),
    "/short": lambda number, message: message[:-1] if number == 3 else message,
    "/long": lambda number, message: message + b"!",
    "/text": lambda number, message: "x" * len(message),
    "/late-flip": lambda number, message: message if number < 50 else message[::-1],
}

def add(path, function):
    @routes.websocket(path)
    def session(request, socket):
        for number, message in enumerate(socket):
            socket.send(function(number, message))

for path, function in change.items():
    add(path, function)

@routes.websocket("/twice")
def twice(request, socket):
    for message in socket:
        socket.send(message)
        socket.send(message)

@routes.websocket("/pinging")
def pinging(request, socket):
    message = socket.receive()
    socket.ping(timeout=20)
    socket.ping(timeout=20)
    socket.send(message)
    socket.receive()

@routes.websocket("/closes")
def closes(request, socket):
    socket.receive()
    socket.close(1011)

@routes.websocket("/chat", protocols=["chat"])
def chat(request, socket):
    for message in socket:
        socket.send(message)

@routes.websocket("/fragments")
def fragments(request, socket):
    for message in socket:
        socket.send_ping(b"are you there?")
        socket.send_binary_message(message[:5], final=False)
        socket.send_binary_message(b"", final=False)
        socket.send_binary_message(message[5:], final=True)

def add_room(path, send):
    @routes.websocket(path)
    def session(request, socket):
        room = rooms[path]
        with room.join(socket):
            for number, message in enumerate(socket):
                send(room, socket, number, message)

deliver = {
    "/room": lambda room, socket, number, message: room.send(message),
    "/room-flipped": lambda room, socket, number, message: room.send(message[:-1] + "~"),
    "/room-swapped": lambda room, socket, number, message: room.send(message[::-1]),
    "/room-but-one": lambda room, socket, number, message: room.send(message, exclude=socket),
    "/room-twice": lambda room, socket, number, message: [room.send(message) for _ in range(2)],
    "/room-short": lambda room, socket, number, message: room.send(message[:-1]),
}
for path, send in deliver.items():
    add_room(path, send)

@routes.websocket("/socket.io/")
def socket_io(request, socket):
    socket.send('0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}')
    assert socket.receive() == "40"
    socket.send("2")
    assert socket.receive() == "3"
    socket.send('40{"sid":"b"}')
    with rooms["events"].join(socket):
        for message in socket:
            rooms["events"].send(message)

import gevent
from greenws.rooms import json_id

@routes.websocket("/swapped/conversation")
def swapped(request, socket):
    for message in socket:
        for number in (2, 1, 3):
            socket.send(f"{message} {number}")

@routes.websocket("/two/conversation")
def two(request, socket):
    for message in socket:
        for number in (1, 2):
            socket.send(f"{message} {number}")

@routes.websocket("/late/conversation")
def late(request, socket):
    for message in socket:
        gevent.spawn_later(0.025, answer, socket, message)

def answer(socket, message):
    for number in (1, 2, 3):
        socket.send(f"{message} {number}")

@routes.websocket("/twice/chat/<name>")
def chat_twice(request, socket, name):
    with rooms[name].join(socket):
        for message in socket:
            rooms[name].send(message)
            rooms[name].send(message)

@routes.websocket("/mixed/chat/<name>")
def mixed(request, socket, name):
    with rooms["mixed"].join(socket):
        for message in socket:
            rooms["mixed"].send(message)

feeds = Rooms(stamp=json_id)

@routes.websocket("/forgetful/feed")
def forgetful(request, socket):
    with feeds["forgetful"].join(socket):
        for message in socket:
            feeds["forgetful"].send(message)

@routes.websocket("/repeating/feed")
def repeating(request, socket):
    with feeds["repeating"].join(socket, since="0-0"):
        for message in socket:
            feeds["repeating"].send(message)

server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
server.start()
print(f"ws://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def load() -> str:
    require_program("gcc")
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--build"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    program = tmp_path_factory.mktemp("benchmarks") / "echoes.py"
    program.write_text(PROGRAM)
    with Process(program) as process:
        yield process.wait_for_port()


def run(load: str, port: int | str, *arguments: object) -> tuple[int, dict[str, Any]]:
    command = [load, "--port", port, "--duration", 0.3, "--warmup", 0.1, *arguments]
    finished = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=limit(40)
    )
    assert finished.stderr == ""
    return finished.returncode, json.loads(finished.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--connections", 20],
        ["--connections", 3, "--inflight", 16],
        ["--connections", 3, "--size", 4096],
        ["--connections", 2, "--size", 1 << 20],
        ["--size", 0],
        ["--size", 125],
        ["--size", 126, "--inflight", 5],
        ["--size", 65535],
        ["--size", 65536],
        ["--connections", 4, "--kind", "text"],
        ["--path", "/fragments"],
        ["--path", "/chat", "--subprotocol", "chat"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments)) or "plain",
)
def test_echoes_are_counted(load: str, server: Process, arguments: list[object]) -> None:
    code, result = run(
        load, server.port, "--path", "/echo", "--watch", server.popen.pid, *arguments
    )
    assert (code, result["errors"]) == (0, 0), result
    assert result["messages"] > 0
    assert result["verified"] >= result["connections"]
    assert abs(result["bytes"] / max(result["size"], 1) - result["messages"]) <= (
        result["connections"] * result["inflight"] if result["size"] else result["messages"]
    )
    assert 0 < result["latency_us"]["p50"] <= result["latency_us"]["p99"]
    assert 0 < result["server_cpu_seconds"] < 3 * result["seconds"]
    assert 0 < result["load_cpu_share"] < 1.1


@pytest.fixture
def deflating(load: str) -> str:
    output = subprocess.run([load, "--features"], capture_output=True, text=True, check=True)
    require(
        "deflate" in output.stdout.split(), "zlib.h (zlib1g-dev), with which load.c compresses,"
    )
    return load


@pytest.mark.parametrize("inflight", [1, 5])
def test_compressed_echoes_are_inflated_and_checked(
    deflating: str, server: Process, inflight: int
) -> None:
    arguments = ["--deflate", "--size", 2000, "--connections", 3, "--inflight", inflight]
    code, result = run(deflating, server.port, "--path", "/echo", *arguments)
    assert (code, result["errors"], result["deflate"]) == (0, 0, True), result
    assert result["verified"] >= 3
    assert result["bytes"] < result["messages"] * 1000


@pytest.mark.parametrize(
    ("path", "error"),
    [("/flipped", "from what was sent after inflating"), ("/fragments", "wrong reserved bits")],
)
def test_a_compressed_message_that_is_no_echo_is_noticed(
    deflating: str, server: Process, path: str, error: str
) -> None:
    code, result = run(deflating, server.port, "--path", path, "--deflate", "--size", 2000)
    assert code == 1
    assert error in result["error"]


ROOM = ["--mode", "room", "--connections", 20, "--rate", 50, "--kind", "text"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", 64],
        ["--size", 1024],
        ["--size", 64, "--silent", 3],
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_deliveries_to_a_room_are_counted(
    load: str, server: Process, arguments: list[object]
) -> None:
    code, result = run(
        load, server.port, *ROOM, "--path", "/room", "--watch", server.popen.pid, *arguments
    )
    assert (code, result["errors"]) == (0, 0), result
    assert result["published"] == 15  # 0.3 seconds
    assert result["messages"] == result["expected"] == 15 * (20 - result["silent"])
    assert result["bytes"] == result["messages"] * result["size"]
    assert result["verified"] >= 20 - result["silent"]
    assert 0 < result["latency_us"]["p50"] <= result["latency_us"]["max"]
    assert 0 < result["server_cpu_seconds"] < 3 * result["seconds"]


def test_compressed_deliveries_are_inflated_and_checked(deflating: str, server: Process) -> None:
    arguments = [*ROOM, "--path", "/room", "--deflate", "--size", 2000]
    code, result = run(deflating, server.port, *arguments)
    assert (code, result["errors"]) == (0, 0), result
    assert result["messages"] == result["expected"] == 15 * 20
    assert result["verified"] >= 20
    assert result["bytes"] < result["messages"] * 1000


@again_after_standstill(0.1)
def test_a_room_by_socket_io_is_counted(load: str, server: Process) -> None:
    path = "/socket.io/?EIO=4&transport=websocket"
    code, result = run(load, server.port, *ROOM, "--path", path, "--socketio")
    assert (code, result["errors"]) == (0, 0), result
    assert result["messages"] == result["expected"] == 15 * 20


@again_after_standstill(0.1)
def test_connections_take_turns_among_ports(load: str, server: Process) -> None:
    ports = f"{server.port},{server.port}"
    code, result = run(load, ports, *ROOM, "--path", "/room")
    assert (code, result["messages"]) == (0, result["expected"]), result


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/room-flipped", "differs from what was sent"),
        ("/room-swapped", "differs from what was sent"),
        ("/room-but-one", "the rest was not delivered"),
        ("/room-twice", "no client had sent"),
        ("/room-short", "31 bytes"),
        ("/twice", "no client had sent"),
    ],
)
@again_after_standstill(0.1)
def test_a_server_that_does_not_broadcast_is_noticed(
    load: str, server: Process, path: str, what: str
) -> None:
    code, result = run(load, server.port, *ROOM, "--path", path, "--timeout", 1)
    assert (code, result["errors"]) == (1, 1)
    assert what in result["error"]


@again_after_standstill(0.1)
def test_handshakes_are_counted(load: str, server: Process) -> None:
    code, result = run(load, server.port, "--mode", "handshake", "--path", "/echo")
    assert (code, result["errors"]) == (0, 0), result
    assert result["messages"] > 0


@pytest.mark.parametrize(("path", "pings"), [("/echo", 0), ("/pinging", 2)])
def test_idle_connections_are_held_until_stdin_ends(
    load: str, server: Process, path: str, pings: int
) -> None:
    command = [load, "--port", str(server.port), "--path", path]
    with subprocess.Popen(
        [*command, "--mode", "idle", "--connections", "30"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        result = json.loads(process.stdout.readline())
        assert (result["connections"], result["verified"], result["errors"]) == (30, 30, 0)
        assert process.poll() is None
        process.stdin.close()
        assert result["pings"] == 30 * pings
        assert json.loads(process.stdout.readline()) == {"pings": 30 * pings}
        assert process.wait(limit(20)) == 0


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/flipped", "differs from what was sent"),
        ("/flipped-at-the-end", "differs from what was sent"),
        ("/late-flip", "differs from what was sent"),
        ("/short", "31 bytes"),
        ("/long", "33 bytes"),
        ("/text", "opcode 1"),
        ("/twice", "no client had sent"),
        ("/closes", "1011"),
        ("/nowhere", "404"),
        ("/chat", "400"),
    ],
)
@again_after_standstill(0.1)
def test_a_server_that_does_not_echo_is_noticed(
    load: str, server: Process, path: str, what: str
) -> None:
    code, result = run(load, server.port, "--path", path, "--duration", pace(0.3))
    assert code == 1
    assert result["errors"] == 1
    assert what in result["error"]


@again_after_standstill(0.1)
def test_a_wrong_echo_of_a_large_message_is_noticed(load: str, server: Process) -> None:
    code, result = run(load, server.port, "--path", "/flipped-at-the-end", "--size", 1 << 20)
    assert (code, result["errors"]) == (1, 1)


def test_the_runner_measures_and_reports(load: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--cases", "32B-1"]
    command += ["--against", "gevent-websocket", "--rounds", "1"]
    command += ["--seconds", "0.2", "--warmup", "0.1", "--output", str(tmp_path / "report")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=limit(60))
    assert finished.returncode == 0, finished.stderr
    assert "| 32B-1 |" in finished.stdout
    data = json.loads((tmp_path / "report.json").read_text())
    case = data["cases"]["32B-1"]
    assert case["failures"] == {}
    assert set(case["servers"]) == {"greenws", "gevent-websocket"}
    assert case["ratios"]["gevent-websocket"]["figure"]["median"] > 0
    assert data["machine"]["cpu"]
    assert str(ROOT) not in json.dumps(data)
    # A part of two that are one, rendered once more.
    again = [*command[:2], "--report", *2 * [str(tmp_path / "report.json")], "--cases", "32B-1"]
    refused = subprocess.run(again, capture_output=True, text=True, timeout=limit(20))
    assert (refused.returncode, "--output" in refused.stderr) == (2, True)
    again += ["--output", str(tmp_path / "part")]
    finished = subprocess.run(again, capture_output=True, text=True, timeout=limit(40))
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "part.md").read_text() == (tmp_path / "report.md").read_text()


def test_the_runner_measures_rooms(load: str, tmp_path: Path) -> None:
    require_program("redis-server")
    command = [sys.executable, str(BENCHMARKS / "run.py")]
    command += ["--cases", "fanout-64B-1000,redis-64B", "--against", "greenws-pure"]
    command += ["--rounds", "1", "--seconds", "0.2", "--warmup", "0.1"]
    command += ["--output", str(tmp_path / "report")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=limit(120))
    assert finished.returncode == 0, finished.stderr
    cases = json.loads((tmp_path / "report.json").read_text())["cases"]
    for case in cases.values():
        assert case["failures"] == {}
        assert case["servers"]["greenws"]["figure"] > 0
        for run in case["runs"]["greenws"]:
            assert run["messages"] == run["expected"] > 0


@pytest.fixture(scope="module")
def scenes(load: str) -> str:
    return str(Path(load).with_name("scenes"))


class Served:
    """A server of the benchmark in a process group of its own."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(BENCHMARKS / "servers" / "greenws_server.py"), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stdout
        lines = iter(self.popen.stdout.readline, "")
        self.port = next(line.split()[1] for line in lines if line.startswith("listening "))

    def stop(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout
        self.popen.stdout.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


def play(scenes: str, port: object, scene: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    times = ["--duration", 0.2, "--warmup", 0.05]
    command = [scenes, "--port", port, "--scene", scene, *times, *arguments]
    finished = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=limit(40)
    )
    assert finished.stderr == ""
    return finished.returncode, json.loads(finished.stdout)


@again_after_standstill(0.1)
def test_a_conversation_is_timed_until_the_third_answer(scenes: str, served: Served) -> None:
    code, result = play(scenes, served.port, "conversation", "--rate", 200)
    assert (code, result["errors"], result["latency_count"]) == (0, 0, 40), result
    assert 4 <= result["latency_ms"]["p50"] <= result["latency_ms"]["max"]


@again_after_standstill(0.1)
def test_late_answers_are_counted(scenes: str, server: Process) -> None:
    code, result = play(scenes, server.port, "conversation", "--rate", 200, "--prefix", "/late")
    assert (code, result["late"]) == (0, 40), result


@again_after_standstill(0.1)
def test_a_chat_is_timed_until_the_last_member_has_the_message(scenes: str, served: Served) -> None:
    code, result = play(scenes, served.port, "chat", "--rooms", 4, "--members", 25)
    assert (code, result["errors"]) == (0, 0), result
    assert result["latency_count"] == 20  # 100 members say something once a second
    assert result["latency_ms"]["p50"] > 0


def test_echoes_and_requests_and_a_ticker_are_timed_at_once(scenes: str, served: Served) -> None:
    groups = ["--echoes", 5, "--echo-rate", 200, "--watchers", 5]
    groups += ["--requests", 5, "--request-rate", 200]
    results = []

    def is_timed(seconds: float) -> bool:
        code, result = play(scenes, served.port, "beside", *groups, "--duration", seconds)
        results.append(result)
        if "requests were answered" in result.get("error", ""):  # less than nine tenths
            return False
        assert (code, result["errors"]) == (0, 0), result
        due = 200 * seconds
        assert result["echo_count"] <= due
        least = min(result["echo_count"], result["http_count"])
        return bool(least >= 0.9 * due and result["ticks_per_second"] > 0)

    # At its end a tenth may be under way: 20 ms of the short time, if a process stands still.
    assert any(map(is_timed, (0.2, 1, 5))), results


@again_after_standstill(0.1)
def test_requests_are_counted(scenes: str, served: Served) -> None:
    code, result = play(scenes, served.port, "http", "--requests", 5)
    assert (code, result["errors"]) == (0, 0), result
    assert result["requests_per_second"] > 0
    assert result["latency_count"] > 0


DROPS = ["--connections", 10, "--rate", 100, "--cut", 0.1, "--cycle", 0.3, "--settle", 0.2]
DROPS += ["--duration", 0.6, "--jitter", 0.1]


def test_a_feed_with_positions_delivers_everything_despite_cuts(
    scenes: str, served: Served
) -> None:
    results = []

    def is_cut_enough(seconds: float) -> bool:
        arguments = [*DROPS, "--duration", seconds]
        code, result = play(scenes, served.port, "drops", *arguments)
        results.append(result)
        assert (code, result["errors"]) == (0, 0), result
        assert result["published"] == 100 * seconds
        assert result["delivered_percent"] == result["least_percent"] == 100
        assert result["duplicates"] == result["disordered"] == result["gaps"] == 0
        return bool(result["cuts"] >= 10)

    # A process that stands still cuts less often.
    assert any(map(is_cut_enough, (0.6, 3))), results


@again_after_standstill(0.1)
def test_what_a_feed_loses_or_repeats_is_noticed(scenes: str, server: Process) -> None:
    code, result = play(scenes, server.port, "drops", *DROPS, "--prefix", "/forgetful")
    assert (code, result["duplicates"]) == (0, 0), result
    assert result["least_percent"] <= result["delivered_percent"] < 100
    code, result = play(scenes, server.port, "drops", *DROPS, "--prefix", "/repeating")
    assert code == 0, result
    assert result["duplicates"] > 0


@again_after_standstill(0.1)
def test_the_clients_of_a_killed_server_come_back_to_the_other(scenes: str, served: Served) -> None:
    dying = Served()
    try:
        ports = f"{dying.port},{served.port}"
        arguments = ["--connections", 50, "--stay", 5, "--echo-rate", 100, "--jitter", 0.1]
        arguments += ["--kill", dying.popen.pid, "--watch", served.popen.pid]
        code, result = play(scenes, ports, "deploy", *arguments)
        assert (code, result["errors"]) == (0, 0), result
        assert result["connections"] == 55
        assert result["attempts"] >= 50
        assert result["server_cpu_seconds"] > 0
        assert result["stayed_count"] > 0
        assert dying.popen.wait(limit(10)) == -9
    finally:
        dying.stop()


@pytest.mark.parametrize(
    ("scene", "prefix", "what"),
    [
        ("conversation", "/swapped", "answer 2 to a message came after 0"),
        ("conversation", "/two", "were not delivered"),
        ("conversation", "/nowhere", "404"),
        ("chat", "/twice", "a message came twice"),
        ("chat", "/mixed", "wrong room"),
    ],
)
@again_after_standstill(0.1)
def test_a_server_that_fails_a_scene_is_noticed(
    scenes: str, server: Process, scene: str, prefix: str, what: str
) -> None:
    few = ["--rooms", 2, "--members", 20, "--rate", 100, "--timeout", pace(0.3)]
    code, result = play(scenes, server.port, scene, *few, "--prefix", prefix)
    assert (code, result["errors"]) == (1, 1)
    assert what in result["error"]


def test_the_runner_plays_scenes(load: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--cases", "conversation"]
    command += ["--against", "greenws-gunicorn", "--rounds", "1"]
    command += ["--seconds", "0.1", "--warmup", "0.1", "--output", str(tmp_path / "report")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=limit(120))
    assert finished.returncode == 0, finished.stderr
    case = json.loads((tmp_path / "report.json").read_text())["cases"]["conversation"]
    assert case["failures"] == {}
    assert case["ratios"]["greenws-gunicorn"]["figure"]["median"] > 0
    assert "over 20 ms" in finished.stdout


def test_tests_of_handlers_are_counted() -> None:
    command = [sys.executable, str(BENCHMARKS / "testing.py"), "--tests", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60))
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["Routes", "Flask"], done
    assert done.stdout.count("20 tests in ") == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_the_memory_of_idle_connections_is_measured() -> None:
    kinds = "room,tls"
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--kinds", kinds]
    finished = subprocess.run(
        [*command, "--connections", "20", "--collector"],
        capture_output=True,
        text=True,
        timeout=limit(40),
    )
    assert finished.returncode == 0, finished.stderr
    room_objects, room, tls_objects, tls = finished.stdout.splitlines()
    for line, kind in ((room, "room"), (tls, "tls")):
        assert re.match(rf"{kind} +[\d.]+ kB", line)
    for line, kind in ((room_objects, "room"), (tls_objects, "tls")):
        assert re.match(
            rf"{kind} +[\d,]+ objects and \d+ for each; a collection takes \d+ ms", line
        )


def test_the_benchmark_of_clients_runs(tmp_path):
    require_program("gcc")
    figures = tmp_path / "figures.json"
    options = ["--connections", "1", "--rounds", "1", "--seconds", "0.05", "--json", str(figures)]
    command = [sys.executable, str(BENCHMARKS / "clients.py"), *options]
    done = subprocess.run(
        [*command, "--against", "greenws,websocket-client"],
        capture_output=True,
        text=True,
        timeout=limit(60),
        env={**os.environ, "CC": "gcc"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert [figure["client"] for figure in found] == ["greenws", "websocket-client"]
    assert all(figure["cpu"] > 0 and figure["rate"] > 0 for figure in found)
