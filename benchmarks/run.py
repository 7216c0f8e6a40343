#!/usr/bin/env python3
"""Compares greenws with other WebSocket servers: the CPU time that each spends per message.

A load generator in C (load.c) runs on one core, one server on another; greenws alternates with its
rivals. README.md in this folder explains what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SERVERS_DIR = HERE / "servers"
LOAD = HERE / "build" / "load"
FAIRNESS = HERE / "build" / "fairness"
SCENES = HERE / "build" / "scenes"
START_TIMEOUT = 20.0  # seconds
SATURATED = 0.9  # of a core; above it the generator, not the server, limits the rate
GIVE_UP_AFTER = 2  # this many failures of a server in a case
ROOM_DRAIN_TIMEOUT = 60.0  # seconds from a room's last message to its last delivery
MAX_DELAY = 0.1  # likewise, when looking for the highest rate
RATE_PRECISION = 1.05
RATE_TRIES = 12
PING_INTERVAL = 4  # seconds, where the cost of keepalive is measured; also how long that takes
MOST = 250_000  # connections, where as many as possible are opened
SPARE_FILES = 300  # descriptors that a process needs for other things than connections
STAYING = 100  # clients of the worker that is not killed in a deploy


@dataclass(frozen=True)
class Case:
    name: str
    what: str
    mode: str = "echo"  # or handshake, idle, most, keepalive, room, rate, fairness, scene
    connections: int = 100
    inflight: int = 1
    size: int = 32
    kind: str = "binary"
    tls: bool = False
    deflate: bool = False
    # in a room all members receive what one of them sends
    rate: float = 0.0  # messages per second; in the mode "rate" the lowest one tried
    silent: int = 0  # members that never read
    redis: bool = False  # two processes that are connected by Redis
    flood: str = ""  # what one client does while another one is echoed to; see fairness.c
    scene: str = ""  # what scenes.c plays; "ticker" and "http-beside" are its "beside"
    path: str = "/small"  # of plain HTTP

    @property
    def is_room(self) -> bool:
        return self.mode in ("room", "rate")

    @property
    def unit(self) -> str:
        """The unit of the figure by which servers are compared; lower is better."""
        return {
            "echo": "µs of CPU per message",
            "handshake": "µs of CPU per handshake",
            "idle": "kB per idle connection",
            "most": "kB per idle connection",
            "keepalive": "ms of CPU per second",
            "room": "µs of CPU per delivered message",
            "rate": "µs per delivered message at the highest rate",
            "fairness": "ms that another client waits (p99)",
            "scene": SCENE_UNITS.get(self.scene, ""),
        }[self.mode]


SCENE_UNITS = {
    "conversation": "ms until the third answer (p50)",
    "http": "µs per request (50 connections)",
    "deploy": "s until all clients are served",
    "drops": "% of the messages lost",
    "chat": "ms until the last member has it (p99)",
    "ticker": "ms until an echo (p99), beside a ticker",
    "http-beside": "ms until a response (p99), beside echoes",
}


def fairness(flood: str, what: str) -> Case:
    return Case(f"fairness-{flood}", f"while one client {what}", "fairness", flood=flood)


def room(name: str, what: str, members: int, rate: float, **more: Any) -> Case:
    more = {"mode": "room", "size": 64, "kind": "text", **more}
    return Case(name, what, connections=members, rate=rate, **more)


def scene(name: str, what: str, scene: str = "", **more: Any) -> Case:
    return Case(name, what, "scene", scene=scene or name, **more)


CASES = {
    case.name: case
    for case in [
        Case("32B-1", "32 bytes, 1 connection", connections=1),
        Case("32B-100", "32 bytes, 100 connections"),
        Case("32B-1000", "32 bytes, 1,000 connections", connections=1000),
        Case("32B-10000", "32 bytes, 10,000 connections", connections=10_000),
        Case("32B-100x16", "32 bytes, 100 connections, 16 in flight on each", inflight=16),
        Case("4KiB-100", "4 KiB, 100 connections", size=4096),
        Case("1MiB-8", "1 MiB, 8 connections", connections=8, size=1 << 20),
        Case("text-32B-100", "32 bytes of text, 100 connections", kind="text"),
        Case("text-4KiB-100", "4 KiB of text, 100 connections", size=4096, kind="text"),
        Case("tls-32B-100", "32 bytes over TLS, 100 connections", tls=True),
        Case(
            "deflate-1KiB-100",
            "1 KiB of JSON with permessage-deflate, 100 connections",
            size=1024,
            kind="text",
            deflate=True,
        ),
        Case("handshakes", "connect, upgrade, close; 32 at a time", "handshake", connections=32),
        Case("idle-memory", "5,000 idle connections", "idle", connections=5000),
        Case(
            "idle-cpu",
            f"10,000 idle connections, each pinged every {PING_INTERVAL} seconds",
            "keepalive",
            connections=10_000,
        ),
        room("fanout-64B-1000", "64 bytes to a room of 1,000, 50 per second", 1000, 50),
        room("fanout-64B-5000", "64 bytes to a room of 5,000, 10 per second", 5000, 10),
        room("fanout-1KiB-1000", "1 KiB to a room of 1,000, 50 per second", 1000, 50, size=1024),
        room("fanout-1KiB-5000", "1 KiB to a room of 5,000, 10 per second", 5000, 10, size=1024),
        room(
            "fanout-1KiB-1000-deflate",
            "1 KiB of JSON with permessage-deflate to a room of 1,000, 50 per second",
            1000,
            50,
            size=1024,
            deflate=True,
        ),
        room(
            "fanout-1KiB-5000-deflate",
            "1 KiB of JSON with permessage-deflate to a room of 5,000, 10 per second",
            5000,
            10,
            size=1024,
            deflate=True,
        ),
        room(
            "fanout-rate-64B-1000",
            "64 bytes to a room of 1,000, at the highest rate that is delivered in time",
            1000,
            10,
            mode="rate",
        ),
        room(
            "fanout-64B-5000-50-silent",
            "64 bytes to a room of 5,000, 10 per second; 50 members never read",
            5000,
            10,
            silent=50,
        ),
        room(
            "redis-64B",
            "64 bytes to a room of 1,000 in two processes through Redis, 10 per second",
            1000,
            10,
            redis=True,
        ),
        room(
            "redis-rate-64B",
            "64 bytes to a room of 1,000 in two processes through Redis, at the highest rate",
            1000,
            5,
            mode="rate",
            redis=True,
        ),
        fairness("json", "sends messages of 2 bytes, which are parsed as JSON"),
        fairness("pings", "sends empty pings"),
        fairness("fragments", "sends messages of 4,000 empty fragments"),
        fairness("pipelined", "pipelines GET requests"),
        fairness("download", "downloads as fast as it can"),
        fairness("rows", "is sent 400,000 messages in a loop"),
        scene(
            "conversation",
            "a client sends every 5 ms, the server answers with three messages 2 ms apart",
            connections=1,
            rate=200,
        ),
        scene("chat", "20 rooms of 50, where each member says something once a second"),
        scene("ticker", "1,000 echoes per second beside a ticker, 50 per second to 500 clients"),
        scene("http-beside", "1,000 HTTP requests per second beside 5,000 echoes per second"),
        scene(
            "deploy", "the clients of a killed worker come back to another one", connections=20_000
        ),
        scene(
            "drops",
            "500 clients of a room, 40 messages per second; each is cut for 2 of every 5 seconds",
            connections=500,
            rate=40,
        ),
        scene("http-hello", "plain HTTP: 5 bytes, 50 connections", "http"),
        scene("http-flask", "plain HTTP: 5 bytes by Flask, 50 connections", "http", path="/flask"),
        scene("http-file", "plain HTTP: a file of 100 kB, 50 connections", "http", path="/file"),
        Case(
            "idle-most",
            f"{MOST:,} idle connections, or as many as a process may have descriptors",
            "most",
            connections=MOST,
        ),
    ]
}

CASE_GROUPS = {
    "fairness": [name for name, case in CASES.items() if case.mode == "fairness"],
    "scenes": [name for name, case in CASES.items() if case.mode == "scene"],
}
FLOODS = ("json", "pings", "fragments", "pipelined", "download", "rows")
HTTP_FLOODS = ("pipelined", "download")
ALL_SCENES = tuple(SCENE_UNITS)


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    tls: bool = False
    deflate: bool = False
    keepalive: bool = False  # sends pings by itself
    echo: bool = True
    rooms: bool = False
    redis: bool = False
    workers: int = 2  # if Redis connects them
    socketio: bool = False
    floods: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    http_command: tuple[str, ...] = ()  # if another one serves plain HTTP

    def can(self, case: Case) -> bool:
        if case.mode == "fairness":
            return case.flood in self.floods
        if case.mode == "scene":
            return case.scene in self.scenes
        if case.redis:
            return self.redis
        if not (self.rooms if case.is_room else self.echo):
            return False
        if case.mode in ("keepalive", "most"):
            return self.keepalive
        return (self.tls or not case.tls) and (self.deflate or not case.deflate)


def bun() -> str:
    """Bun's binary: the one installed by npm, or else the one on the PATH."""
    folders = [*HERE.glob("node_modules/@oven/bun-*/bin/bun"), HERE / "node_modules/.bin/bun"]
    return str(next((path for path in folders if path.exists()), "bun"))


def python_server(name: str, program: str, **can: Any) -> Server:
    return Server(name, (sys.executable, str(SERVERS_DIR / program)), **can)


HTTP_APP = "http_app:make_http_app()"
JS_SCENES = ("conversation", "chat", "ticker", "http-beside", "deploy", "drops")


def gunicorn_command(application: str, worker: str, packages: str, *more: str) -> tuple[str, ...]:
    program = str(SERVERS_DIR / "gunicorn_server.py")
    return (sys.executable, program, application, worker, packages, *more)


def under_gunicorn(
    name: str, application: str, worker: str, packages: str, scenes: tuple[str, ...], *more: str
) -> Server:
    command = gunicorn_command(application, worker, packages, *more)
    return Server(name, command, echo=False, scenes=scenes)


def http_server(kind: str) -> Server:
    command = (sys.executable, str(SERVERS_DIR / "http_server.py"), kind)
    return Server(kind, command, echo=False, scenes=("http",))


def known_servers() -> dict[str, Server]:
    everything = {"tls": True, "deflate": True, "rooms": True, "keepalive": True}
    ours = python_server(
        "greenws",
        "greenws_server.py",
        env={"PYTHONPATH": str(ROOT)},
        redis=True,
        floods=FLOODS,
        scenes=ALL_SCENES,
        **everything,
    )
    ours = replace(ours, http_command=(*ours.command, "--http"))
    patched = replace(
        ours,
        name="greenws-patched",
        command=(*ours.command, "--patched"),
        http_command=(*ours.command, "--patched", "--http"),
        redis=False,
    )
    servers = [
        ours,
        patched,
        replace(
            under_gunicorn(
                "greenws-gunicorn",
                "greenws_app:make_app()",
                "greenws_worker.Worker",
                "gevent",
                ALL_SCENES,
            ),
            http_command=gunicorn_command(HTTP_APP, "greenws_worker.Worker", "gevent"),
            env=ours.env,
        ),
        replace(ours, name="greenws-pure", env={**ours.env, "GREENWS_PURE_PYTHON": "1"}),
        python_server(
            "gevent-websocket",
            "gevent_websocket_server.py",
            floods=FLOODS,
            scenes=("conversation", "http-beside"),
        ),
        under_gunicorn(
            "gevent-websocket-gunicorn",
            "gevent_websocket_app:application",
            "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
            "gevent-websocket,gevent",
            ("conversation", "http-beside"),
        ),
        python_server("flask-sock", "flask_sock_server.py"),
        python_server(
            "websockets-asyncio",
            "websockets_asyncio_server.py",
            deflate=True,
            rooms=True,
            keepalive=True,
            floods=tuple(name for name in FLOODS if name not in HTTP_FLOODS),
            scenes=("conversation", "chat", "ticker", "deploy", "drops"),
        ),
        python_server("websockets-sync", "websockets_sync_server.py", deflate=True),
        python_server(
            "aiohttp", "aiohttp_server.py", deflate=True, rooms=True, keepalive=True, floods=FLOODS
        ),
        python_server("picows", "picows_server.py", tls=True, keepalive=True),
        Server(
            "node-ws",
            ("node", str(SERVERS_DIR / "ws_server.mjs")),
            scenes=JS_SCENES,
            **everything,
        ),
        Server(
            "bun",
            (bun(), str(SERVERS_DIR / "bun_server.js")),
            floods=FLOODS,
            scenes=JS_SCENES,
            **everything,
        ),
        replace(
            ours,
            name="greenws-one-worker",
            echo=False,
            rooms=False,
            keepalive=False,
            floods=(),
            scenes=(),
            workers=1,
        ),
        python_server(
            "flask-socketio", "flask_socketio_server.py", echo=False, redis=True, socketio=True
        ),
        replace(
            under_gunicorn(
                "flask-socketio-gunicorn",
                "flask_socketio_app:app",
                "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
                "flask-socketio,python-socketio,python-engineio,gevent-websocket,gevent",
                ("chat", "deploy", "drops"),
            ),
            socketio=True,
        ),
        http_server("pywsgi"),
        under_gunicorn("gunicorn-gevent", HTTP_APP, "gevent", "gevent,flask", ("http",)),
        under_gunicorn("gunicorn-gthread", HTTP_APP, "gthread", "flask", ("http",), "--threads=8"),
        http_server("waitress"),
        http_server("cheroot"),
        http_server("granian"),
    ]
    return {server.name: server for server in servers}


def find_server(name: str, servers: dict[str, Server]) -> Server:
    """A server by its name; ``greenws@DIRECTORY`` is the greenws of another checkout."""
    if name in servers:
        return servers[name]
    kind, at, directory = name.partition("@")
    if at and kind in ("greenws", "greenws-pure"):
        path = Path(directory).resolve()
        if not (path / "greenws").is_dir():
            raise SystemExit(f"{directory} does not contain a folder greenws")
        server = servers[kind]
        return replace(
            server,
            name=f"{kind}@{path.name}",
            env={**server.env, "PYTHONPATH": str(path)},
        )
    known = ", ".join(servers)
    raise SystemExit(f"unknown server {name!r}; choose from: {known}, greenws@DIRECTORY")


class Failure(Exception):
    """A server does not start or does not echo. The text is shown to the user."""


# --- measuring -----------------------------------------------------------------------------------


def build_load() -> Path:
    """Compiles load.c if it is newer than its binary. It has TLS and permessage-deflate if the
    headers of OpenSSL and zlib are installed."""
    source = HERE / "load.c"
    if is_current(LOAD):
        return LOAD
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise SystemExit("the load generator needs a C compiler, but neither gcc nor cc was found")
    LOAD.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOAD.parent) as folder:
        target = Path(folder) / "load"
        base = [*compiler.split(), "-O2", "-std=gnu11", "-o", str(target), str(source)]
        tls, deflate = ["-DWITH_TLS", "-lssl", "-lcrypto"], ["-DWITH_DEFLATE", "-lz"]
        for more in ([*tls, *deflate], tls, deflate, []):
            built = subprocess.run([*base, *more], capture_output=True, text=True, check=False)
            if built.returncode == 0:
                break
        else:
            raise SystemExit(f"load.c could not be compiled:\n{built.stderr}")
        target.replace(LOAD)
    return LOAD


def is_current(binary: Path) -> bool:
    """Whether a binary is newer than its source and all headers."""
    sources = [HERE / f"{binary.name}.c", *HERE.glob("*.h")]
    return binary.exists() and all(
        binary.stat().st_mtime > source.stat().st_mtime for source in sources
    )


def build_plain(binary: Path) -> None:
    """Compiles fairness.c or scenes.c where its binary is older."""
    if is_current(binary):
        return
    compiler = os.environ.get("CC") or "cc"
    source = HERE / f"{binary.name}.c"
    binary.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        target = Path(folder) / binary.name
        command = [*compiler.split(), "-O2", "-std=gnu11", "-o", str(target), str(source)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise SystemExit(f"{source.name} does not compile:\n{built.stderr}")
        target.replace(binary)


def load_features() -> list[str]:
    output = subprocess.run([str(LOAD), "--features"], capture_output=True, text=True, check=True)
    return output.stdout.split()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for the TLS case."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Redis:
    """A private redis-server, on the core of the load generator, away from the measured servers."""

    def __init__(self, core: int | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        try:
            self._popen = subprocess.Popen(
                ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
                + ["--dir", self._folder.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: pin(core),
            )
        except OSError as error:
            self._folder.cleanup()
            raise Failure(f"redis-server could not be started: {error.strerror}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers(port):
            if time.monotonic() > deadline or self._popen.poll() is not None:
                self.stop()
                raise Failure("redis-server did not start")
            time.sleep(0.01)

    def _answers(self, port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._folder.cleanup()

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Running:
    """A started server that is listening."""

    def __init__(
        self,
        case: Case,
        server: Server,
        options: Options,
        redis: Redis | None = None,
    ) -> None:
        self.ports = ""  # separated by commas
        self.versions: dict[str, str] = {}
        self._output = tempfile.TemporaryFile("w+b")  # closed in stop()
        http = case.scene == "http" and server.http_command
        command = [*(server.http_command if http else server.command), "--port", "0"]
        if case.tls and options.certificate:
            certificate, key = options.certificate
            command += ["--certfile", str(certificate), "--keyfile", str(key)]
        if case.deflate:
            command.append("--deflate")
        if case.mode in ("keepalive", "most"):
            command += ["--ping-interval", str(PING_INTERVAL)]
        if redis:
            command += ["--redis", redis.url, "--workers", str(server.workers)]

        def prepare() -> None:
            pin(options.server_core)
            raise_file_limit()

        env = {**os.environ, "PYTHONUNBUFFERED": "1", **server.env}
        if "GREENWS_PURE_PYTHON" not in server.env:
            env.pop("GREENWS_PURE_PYTHON", None)
        try:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except OSError as error:
            self._output.close()
            raise Failure(f"could not be started: {error.strerror}") from None
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            ended = self.popen.poll() is not None
            for line in self.lines():
                if line.startswith("versions "):
                    self.versions = json.loads(line.removeprefix("versions "))
                elif line.startswith("listening "):
                    self.ports = ",".join(line.split()[1:])
                    return
            if ended:
                raise Failure(f"did not start: {self.last_output()}")
            if time.monotonic() > deadline:
                raise Failure(f"did not listen within {START_TIMEOUT:g} seconds")
            time.sleep(0.01)

    def lines(self) -> list[str]:
        size = os.fstat(self._output.fileno()).st_size
        text = os.pread(self._output.fileno(), size, 0).decode(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def errors(self) -> list[str]:
        return [line.strip() for line in self.lines() if "Error" in line]

    def last_output(self) -> str:
        lines = [line.strip() for line in self.lines() if line.strip()]
        return (self.errors() or lines or [f"exit code {self.popen.returncode}"])[-1]

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._output.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def process_tree(pid: int) -> Iterator[int]:
    yield pid
    tasks = Path(f"/proc/{pid}/task")
    for task in tasks.iterdir() if tasks.exists() else ():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from process_tree(int(child))


def memory_kb(pid: int) -> float:
    """Memory of a process tree; each shared page counts in proportion (Pss)."""
    total = 0.0
    for process in process_tree(pid):
        for name, label in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
            try:
                text = Path(f"/proc/{process}/{name}").read_text()
                total += next(float(s.split()[1]) for s in text.splitlines() if s.startswith(label))
                break
            except (OSError, StopIteration):
                continue
    return total


def cpu_seconds(pid: int) -> float:
    """CPU time used by a process tree, more precise than the ticks in /proc/PID/stat."""
    total = 0.0
    for process in process_tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~process << 3 | 2)  # as clock_getcpuclockid() has it
    return total


@dataclass
class Options:
    seconds: float
    warmup: float
    server_core: int | None
    load_core: int | None
    certificate: tuple[Path, Path] | None
    connections: int | None = None  # at most; for small machines and tests


def load_command(case: Case, ports: str, **more: object) -> list[str]:
    arguments = {
        "port": ports,
        "mode": "room" if case.is_room else case.mode,
        "connections": case.connections,
        "inflight": case.inflight,
        "size": case.size,
        "kind": case.kind,
        **more,
    }
    command = [str(LOAD)]
    for name, value in arguments.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is None else [str(value)])]
    return command + ["--tls"] * case.tls + ["--deflate"] * case.deflate


def parse_load(output: str, errors: str, code: int) -> dict[str, Any]:
    try:
        result = json.loads(output)
    except ValueError:
        raise Failure(f"the load generator failed ({code}): {errors.strip()}") from None
    if code != 0 or result["errors"]:
        raise Failure(result.get("error") or f"the load generator ended with {code}")
    return dict(result)


def run_load(case: Case, ports: str, options: Options, **more: object) -> dict[str, Any]:
    finished = subprocess.run(
        load_command(case, ports, **more),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: pin(options.load_core),
    )
    return parse_load(finished.stdout, finished.stderr, finished.returncode)


def measure(case: Case, server: Server, options: Options) -> dict[str, Any]:
    """Measures one server in one case, in a fresh process.

    Raises:
        Failure: the server did not start, or did anything but echo.
    """
    if case.silent:
        return measure_silent(case, server, options)
    if case.mode == "most":
        return measure_most(case, server, options)
    return measure_fresh(case, server, options)


def measure_fresh(case: Case, server: Server, options: Options) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Redis(options.load_core)) if case.redis else None
        running = stack.enter_context(Running(case, server, options, redis))
        try:
            if case.mode == "idle":
                result = measure_idle(case, running, options)
            elif case.mode == "keepalive":
                result = measure_keepalive(case, running, options)
            elif case.mode == "fairness":
                result = measure_fairness(case, running, options)
            elif case.mode == "scene":
                result = measure_scene(case, server, running, options)
            elif case.mode == "room":
                result = measure_room(case, server, running, options)
            elif case.mode == "rate":
                result = measure_rate(case, server, running, options)
            else:
                result = measure_cpu(case, running, options)
        except Failure as failure:
            died = "the server died: " if running.popen.poll() is not None else ""
            if died or running.errors():
                raise Failure(f"{failure} ({died}{running.last_output()})") from None
            raise
    return {"versions": running.versions, **result}


def measure_cpu(case: Case, running: Running, options: Options) -> dict[str, Any]:
    echo = case.mode == "echo"
    result = run_load(
        case,
        running.ports,
        options,
        duration=options.seconds,
        warmup=options.warmup,
        watch=running.popen.pid,
        min_messages=2 * case.connections * case.inflight if echo else 0,
    )
    # Bytes, so that a large message that is half received at the end counts as a half.
    count = result["bytes"] / case.size if echo else result["messages"]
    result["figure"] = result["server_cpu_seconds"] / count * 1e6
    if echo:
        result["megabytes_per_second"] = result["bytes"] / result["seconds"] / 1e6
    result["server_cpu_share"] = result["server_cpu_seconds"] / result["seconds"]
    return result


def run_room(
    case: Case, server: Server, running: Running, options: Options, **more: object
) -> dict[str, Any]:
    arguments: dict[str, object] = {
        "duration": options.seconds,
        "warmup": options.warmup,
        "watch": running.popen.pid,
        "rate": case.rate,
        "silent": case.silent,
        "drain_timeout": ROOM_DRAIN_TIMEOUT,
        "path": "/room",
        **more,
    }
    if server.socketio:
        arguments |= {"path": "/socket.io/?EIO=4&transport=websocket", "socketio": None}
    return run_load(case, running.ports, options, **arguments)


def measure_room(case: Case, server: Server, running: Running, options: Options) -> dict[str, Any]:
    result = run_room(case, server, running, options)
    if result["messages"] < result["expected"]:
        raise Failure(f"{result['messages']} of {result['expected']} messages were delivered")
    return room_figures(result)


def room_figures(result: dict[str, Any]) -> dict[str, Any]:
    result["figure"] = result["server_cpu_seconds"] / result["messages"] * 1e6
    result["megabytes_per_second"] = result["bytes"] / result["seconds"] / 1e6
    result["server_cpu_share"] = result["server_cpu_seconds"] / result["seconds"]
    return result


def measure_silent(case: Case, server: Server, options: Options) -> dict[str, Any]:
    """Measures without and with the silent members, each time in a fresh process."""
    without = measure_fresh(replace(case, silent=0), server, options)
    result = measure_fresh(case, server, options)
    result["figure_without_silent"] = without["figure"]
    result["cost_of_silent"] = result["figure"] / without["figure"]
    return result


def wait_until_idle(pid: int) -> None:
    """Waits until a process tree uses hardly any CPU time, at most START_TIMEOUT seconds."""
    deadline = time.monotonic() + START_TIMEOUT
    used = cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(0.3)
        before, used = used, cpu_seconds(pid)
        if used - before < 0.01:
            return


def measure_rate(case: Case, server: Server, running: Running, options: Options) -> dict[str, Any]:
    """Finds the highest rate at which every message reaches every member in time."""

    def attempt(rate: float) -> dict[str, Any]:
        # Messages that are left from the last attempt must not reach the members of this one.
        wait_until_idle(running.popen.pid)
        return run_room(case, server, running, options, rate=f"{rate:.3f}", drain_timeout=1)

    def is_enough(result: dict[str, Any]) -> bool:
        everything = result["messages"] == result["expected"]
        return bool(everything and result["drain_seconds"] <= MAX_DELAY)

    best = attempt(case.rate)
    if not is_enough(best):
        raise Failure(f"at {case.rate:g} messages per second they are not delivered in time")
    # Start from an estimate by the cost of a message; go up, then bisect.
    low, high, tries = case.rate, 0.0, 0
    cost = best["server_cpu_seconds"] / best["published"]
    rate = max(1.1 * low, 0.9 / cost)
    while tries < RATE_TRIES and (not high or high / low > RATE_PRECISION):
        result = attempt(rate)
        if not is_enough(result):  # another virtual machine may have disturbed it: try once more
            result = attempt(rate)
        tries += 1
        if is_enough(result):
            best, low = result, rate
        else:
            high = rate
        rate = (low * high) ** 0.5 if high else low * 1.15
    best = room_figures(best)
    best["cpu_figure"] = best["figure"]
    best["highest_rate"] = low
    best["figure"] = 1e6 / (low * case.connections)
    return best


@contextlib.contextmanager
def hold(case: Case, running: Running, options: Options) -> Iterator[dict[str, Any]]:
    """Keeps idle connections open; adds the number of pings that arrived to the result."""
    load = subprocess.Popen(
        load_command(case, running.ports, mode="idle"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: pin(options.load_core),
    )
    assert load.stdin and load.stdout and load.stderr
    with load:
        line = load.stdout.readline()  # the generator times out by itself
        if not line or '"errors": 0' not in line:
            load.stdin.close()
            parse_load(line, load.stderr.read(), load.wait())
            raise Failure("the load generator ended early")
        result = json.loads(line)
        yield result
        load.stdin.close()
        rest = load.stdout.read()
        if load.wait() != 0:
            said = json.loads(rest.splitlines()[-1]) if rest else {}
            raise Failure(said.get("error") or load.stderr.read().strip())
        result["pings"] = json.loads(rest)["pings"] - result["pings"]


def measure_idle(case: Case, running: Running, options: Options) -> dict[str, Any]:
    # Imports and one-time allocations must not count towards the connections.
    first = replace(case, mode="echo", connections=16)
    run_load(first, running.ports, options, duration=0.1, warmup=0.1)
    time.sleep(1)
    before = memory_kb(running.popen.pid)
    with hold(case, running, options) as result:
        time.sleep(2)
        after = memory_kb(running.popen.pid)
    result["figure"] = (after - before) * 1.024 / case.connections
    result["memory_kb"] = {"before": before, "after": after}
    return result


def measure_keepalive(case: Case, running: Running, options: Options) -> dict[str, Any]:
    """Measures for the time in which each connection is pinged once."""
    with hold(case, running, options) as result:
        time.sleep(1)
        begun, before = time.monotonic(), cpu_seconds(running.popen.pid)
        time.sleep(PING_INTERVAL)
        seconds, after = time.monotonic() - begun, cpu_seconds(running.popen.pid)
    if result["pings"] < case.connections:
        raise Failure(f"{case.connections} connections received only {result['pings']} pings")
    if after <= before:
        raise Failure("the CPU time of another process cannot be read on this machine")
    result["figure"] = (after - before) / seconds * 1000
    return result


def measure_fairness(case: Case, running: Running, options: Options) -> dict[str, Any]:
    """What an echo client waits while another client floods the server."""
    finished = subprocess.run(
        [str(FAIRNESS), "--port", running.ports, "--flood", case.flood]
        + ["--duration", str(options.seconds)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: pin(options.load_core),
    )
    result = parse_load(finished.stdout, finished.stderr, finished.returncode)
    result["figure"] = result["p99_ms"]
    return result


def possible_connections(case: Case, options: Options, besides: int = 0) -> int:
    """As many connections as the case wants, if one process may have that many descriptors."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    possible = case.connections
    if most != resource.RLIM_INFINITY:
        possible = min(possible, most - SPARE_FILES - besides)
    return min(possible, options.connections or possible)


def measure_most(case: Case, server: Server, options: Options) -> dict[str, Any]:
    """Memory and the cost of pings of as many connections as one process can have."""
    case = replace(case, connections=possible_connections(case, options))
    with Running(case, server, options) as running:
        first = replace(case, mode="echo", connections=16)
        run_load(first, running.ports, options, duration=0.1, warmup=0.1)
        time.sleep(1)
        before = memory_kb(running.popen.pid)
        with hold(replace(case, mode="idle"), running, options) as result:
            time.sleep(2)
            after = memory_kb(running.popen.pid)
            begun, used = time.monotonic(), cpu_seconds(running.popen.pid)
            time.sleep(PING_INTERVAL)
            used = cpu_seconds(running.popen.pid) - used
            result["ms_per_second"] = used / (time.monotonic() - begun) * 1000
    result["figure"] = (after - before) * 1.024 / case.connections
    result["opened"] = float(case.connections)
    return {"versions": running.versions, **result}


def play(
    case: Case, server: Server, ports: str, options: Options, scene: str, **more: object
) -> dict[str, Any]:
    """Plays a scene; latencies come as ``NAME_ms p50`` and so on."""
    arguments = {"port": ports, "scene": scene, "duration": options.seconds, **more}
    arguments = {"warmup": options.warmup, **arguments}
    command = [str(SCENES)]
    for name, value in arguments.items():
        command += [f"--{name.replace('_', '-')}", str(value)]

    def prepare() -> None:
        pin(options.load_core)
        raise_file_limit()

    finished = subprocess.run(
        command + ["--socketio"] * server.socketio,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=prepare,
    )
    result: dict[str, Any] = {}
    for name, value in parse_load(finished.stdout, finished.stderr, finished.returncode).items():
        if isinstance(value, dict):
            result |= {f"{name} {key}": each for key, each in value.items()}
        else:
            result[name] = float(value)
    return result


def measure_scene(case: Case, server: Server, running: Running, options: Options) -> dict[str, Any]:
    pid = running.popen.pid
    if case.scene == "deploy":
        return measure_deploy(case, server, running, options)
    if case.scene in ("ticker", "http-beside"):
        return measure_beside(case, server, running, options)
    connections = min(case.connections, options.connections or case.connections)
    more: dict[str, object] = {"watch": pid}
    if case.scene == "http":
        more |= {"path": case.path, "requests": min(50, options.connections or 50)}
    elif case.scene == "chat":
        more |= {"rooms": 20, "members": min(50, options.connections or 50)}
        more |= {"duration": 2 * options.seconds, "warmup": 1}
    elif case.scene == "conversation":
        more |= {"rate": case.rate, "duration": 3 * options.seconds, "connections": connections}
    elif case.scene == "drops":
        more |= {"rate": case.rate, "duration": 6 * options.seconds, "connections": connections}
        more |= {"cut": options.seconds, "cycle": 2.5 * options.seconds}
        more |= {"settle": min(1.0, options.seconds)}
    result = play(case, server, running.ports, options, case.scene, **more)
    if case.scene == "http":
        result["figure"] = 1e6 / result["requests_per_second"]
        requests = result["requests_per_second"] * result["seconds"]
        result["cpu_us"] = result["server_cpu_seconds"] / requests * 1e6
        result["server_cpu_share"] = result["server_cpu_seconds"] / result["seconds"]
    elif case.scene == "drops":
        result["figure"] = 100 - result["delivered_percent"]
        for what in ("duplicates", "disordered"):
            if result[what]:
                raise Failure(f"{result[what]:.0f} messages were {what}")
    else:
        result["figure"] = result[f"latency_ms {'p50' if case.scene == 'conversation' else 'p99'}"]
        result["server_cpu_share"] = result["server_cpu_seconds"] / result["seconds"]
    return result


def measure_beside(
    case: Case, server: Server, running: Running, options: Options
) -> dict[str, Any]:
    """Plays each alone, then both at once, on the same server."""
    both: dict[str, object] = {"echoes": 100, "echo_rate": 1000}
    alone = [both]
    if case.scene == "ticker":
        both = {**both, "watchers": min(500, options.connections or 500)}
    else:
        requests = {"requests": 50, "request_rate": 1000}
        alone = [{"echoes": 100, "echo_rate": 5000}, requests]
        both = {**alone[0], **requests}
    without: dict[str, Any] = {}
    for each in alone:
        without |= play(case, server, running.ports, options, "beside", **each)
    result = play(case, server, running.ports, options, "beside", watch=running.popen.pid, **both)
    result |= {f"{key} alone": without[key] for key in without if "_ms " in key}
    if result.get("ticks_per_second", 50) < 25:
        raise Failure(f"a client got {result['ticks_per_second']:.1f} messages per second, not 50")
    result["figure"] = result[f"{'echo' if case.scene == 'ticker' else 'http'}_ms p99"]
    result["server_cpu_share"] = result["server_cpu_seconds"] / result["seconds"]
    return result


def measure_deploy(case: Case, server: Server, dying: Running, options: Options) -> dict[str, Any]:
    connections = possible_connections(case, options, STAYING)
    with Running(case, server, options) as staying:
        result = play(
            case,
            server,
            f"{dying.ports},{staying.ports}",
            options,
            "deploy",
            connections=connections,
            stay=STAYING,
            echo_rate=5 * STAYING,
            warmup=options.seconds,
            timeout=120,
            kill=dying.popen.pid,
            watch=staying.popen.pid,
        )
    result["returned"] = float(connections)
    result["figure"] = result["seconds"]
    return result


# --- the run -------------------------------------------------------------------------------------


def schedule(ours: str, rivals: list[str], backwards: bool) -> list[str]:
    """The order of one round: each rival runs next to one of ours, with which it is compared."""
    order = [ours]
    for start in range(0, len(rivals), 2):
        order += rivals[start : start + 2]
        if start + 1 < len(rivals):
            order.append(ours)
    return order[::-1] if backwards else order


def neighbour(order: list[str], index: int, ours: str) -> int:
    return index - 1 if index and order[index - 1] == ours else index + 1


class Progress:
    """Shows progress: one line that is overwritten on a terminal, one line per step elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.begun = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, what: str) -> None:
        left = ""
        if self.done >= 3:
            seconds = (time.monotonic() - self.begun) / self.done * (self.total - self.done)
            left = f", {datetime.timedelta(seconds=round(seconds))} left"
        text = f"[{self.done}/{self.total}{left}] {what}"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + text[:width], end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def say(self, what: str) -> None:
        """Prints a line that stays on the screen."""
        print(("\r\x1b[K" if self.terminal else "") + what, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def run_case(
    case: Case,
    ours: Server,
    rivals: list[Server],
    rounds: int,
    options: Options,
    progress: Progress,
) -> dict[str, Any]:
    servers = {server.name: server for server in [ours, *rivals]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    ratios: dict[str, list[dict[str, float]]] = {server.name: [] for server in rivals}
    failures: dict[str, list[str]] = {}
    for number in range(rounds):
        order = schedule(ours.name, [server.name for server in rivals], number % 2 == 1)
        results: list[dict[str, Any] | None] = []
        for name in order:
            result = None
            if len(failures.get(name, [])) < GIVE_UP_AFTER:
                progress.show(f"{case.name}, round {number + 1} of {rounds}: {name}")
                try:
                    result = measure(case, servers[name], options)
                except Failure as failure:
                    failures.setdefault(name, []).append(str(failure))
                    progress.say(f"FAILED: {name} in {case.name}: {failure}")
                else:
                    runs[name].append({"round": number, **result})
                    if not progress.terminal:
                        progress.say(f"    {result['figure']:.3f} {case.unit}")
            progress.done += 1
            results.append(result)
        for index, name in enumerate(order):
            if name == ours.name:
                continue
            their, our = results[index], results[neighbour(order, index, ours.name)]
            if their and our and our["figure"]:
                ratio = {"figure": their["figure"] / our["figure"]}
                if case.mode == "echo":
                    ratio["p50"] = their["latency_us"]["p50"] / our["latency_us"]["p50"]
                ratios[name].append(ratio)
    return {
        "what": case.what,
        "unit": case.unit,
        "mode": case.mode,
        "scene": case.scene,
        "size": case.size,
        "servers": {name: summary(runs[name]) for name in servers if runs[name]},
        "ratios": {name: ratio_summary(values) for name, values in ratios.items() if values},
        "failures": failures,
        "runs": runs,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the runs of one server."""
    result: dict[str, Any] = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        if key == "latency_us":
            result[key] = {name: statistics.median(v[name] for v in values) for name in values[0]}
        elif isinstance(values[0], float):
            result[key] = statistics.median(values)
    return result


def ratio_summary(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": statistics.median(value[key] for value in values),
            "min": min(value[key] for value in values),
            "max": max(value[key] for value in values),
            "rounds": len(values),
        }
        for key in values[0]
    }


def describe_machine(options: Options) -> dict[str, Any]:
    def first_line(*command: str, cwd: Path | None = None) -> str:
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return (output.stdout.splitlines() or [""])[0]

    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    commit = first_line("git", "--no-optional-locks", "rev-parse", "--short", "HEAD", cwd=ROOT)
    changed = first_line("git", "--no-optional-locks", "status", "--porcelain", "-uno", cwd=ROOT)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "server_core": options.server_core,
        "load_core": options.load_core,
        "virtual": any("hypervisor" in line for line in cpuinfo if line.startswith("flags")),
        "kernel": platform.release(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average_before": os.getloadavg()[0],
        "compiler": first_line(os.environ.get("CC") or "gcc", "--version"),
        "commit": commit + (" and changes" if changed not in ("", "unknown") else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


# --- the report ----------------------------------------------------------------------------------


def number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]


def render(data: dict[str, Any]) -> str:
    ours, machine = data["ours"], data["machine"]
    cases = {name: case for name, case in data["cases"].items() if case["servers"]}
    rivals = [name for name in data["against"] if any(name in c["ratios"] for c in cases.values())]
    out = [f"Cost of each server, divided by the cost of {ours} (above 1: {ours} is cheaper)."]
    out += [f"Median of {data['rounds']} rounds; minimum and maximum in brackets.", ""]
    rows = []
    for name, case in cases.items():
        row = [name]
        for rival in rivals:
            ratio = case["ratios"].get(rival, {}).get("figure")
            row.append("" if not ratio else brackets(ratio))
        rows.append(row)
    if rivals:
        out += markdown_table(["case", *rivals], rows)
    for name, case in cases.items():
        out += ["", f"**{name}**: {case['what']}", ""]
        out += details(case, ours)
        for server, errors in case["failures"].items():
            out.append(f"\n{server} failed {len(errors)} time(s): {errors[-1]}")
    for name, case in data["cases"].items():
        if not case["servers"]:
            out += ["", f"**{name}**: nothing was measured. {json.dumps(case['failures'])}"]
    out += ["", machine_line(machine, data), "", "Versions:", ""]
    for server, versions in data["versions"].items():
        out.append(f"- {server}: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for server, reason in data["left_out"].items():
        out.append(f"- left out: {server} ({reason})")
    return "\n".join(out) + "\n"


def merge(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Several reports of one machine as one; the head of the first one."""
    merged = reports[0]
    for other in reports[1:]:
        merged["cases"] |= other["cases"]
        merged["versions"] |= other["versions"]
        merged["left_out"] |= other["left_out"]
        merged["against"] += [name for name in other["against"] if name not in merged["against"]]
    return merged


def brackets(ratio: dict[str, float]) -> str:
    return f"{number(ratio['median'])} ({number(ratio['min'])} to {number(ratio['max'])})"


def details(case: dict[str, Any], ours: str) -> list[str]:
    servers = case["servers"]
    order = sorted(servers, key=lambda name: servers[name]["figure"])
    rows = []
    if case["mode"] in ("scene", "most"):
        columns = SCENE_COLUMNS[case.get("scene") or case["mode"]]
        for name in order:
            row = [name, number(servers[name]["figure"]), ratio_cell(case, name, ours)]
            rows.append(row + [cell(servers[name], key) for key in columns.values()])
        return markdown_table(["server", case["unit"], "ratio", *columns], rows)
    if case["mode"] in ("idle", "keepalive"):
        for name in order:
            rows.append([name, number(servers[name]["figure"]), ratio_cell(case, name, ours)])
        return markdown_table(["server", case["unit"], "ratio"], rows)
    if case["mode"] == "fairness":
        keys = ("p50_ms", "p99_ms", "max_ms", "sent_mb_per_second", "received_mb_per_second")
        rows = [[name, *(number(servers[name][key]) for key in keys)] for name in order]
        heads = ["p50 ms", "p99 ms", "most ms", "MB/s from the flood", "MB/s to it"]
        return markdown_table(["server", *heads], rows)
    echo = case["mode"] == "echo"
    room = case["mode"] in ("room", "rate")
    silent = any("cost_of_silent" in server for server in servers.values())
    saturated = False
    for name in order:
        server = servers[name]
        load = server["load_cpu_share"]
        latency = server["latency_us"]
        row = [name, number(server["figure"]), ratio_cell(case, name, ours)]
        row.append(f"{server['messages_per_second']:,.0f}")
        if case["mode"] == "rate":
            row += [number(server["highest_rate"]), number(server["cpu_figure"])]
        if silent:
            row.append(number(server["cost_of_silent"]))
        if echo:
            row.append(number(server["megabytes_per_second"]))
        row += [number(latency[key]) for key in ("p50", "p99", "p99.9")]
        if echo:
            ratio = case["ratios"].get(name, {}).get("p50")
            row.append(number(ratio["median"]) if ratio else "")
        row.append(f"{load:.0%}" + (" (!)" if load > SATURATED else ""))
        saturated = saturated or load > SATURATED
        rows.append(row)
    what = "messages/s" if echo else "deliveries/s" if room else "handshakes/s"
    head = ["server", case["unit"], "ratio", what]
    head += ["highest rate/s", "µs of CPU"] if case["mode"] == "rate" else []
    head += ["cost / cost without silent members"] if silent else []
    head += ["MB/s"] if echo else []
    head += ["p50 µs", "p99 µs", "p99.9 µs", *(["p50 ratio"] if echo else []), "generator's CPU"]
    lines = markdown_table(head, rows)
    if saturated:
        lines += ["", "(!) The load generator was saturated: it limited rate and latency."]
    return lines


LOAD_COLUMN = {"generator's CPU": "load_cpu_share"}
LATENCY_COLUMNS = {f"{p} ms": f"latency_ms {p}" for p in ("p50", "p99", "p99.9", "max")}
SCENE_COLUMNS = {
    "conversation": {
        **LATENCY_COLUMNS,
        "of": "latency_count",
        "over 20 ms": "late",
        "server's CPU": "server_cpu_share",
    },
    "http": {
        "requests/s": "requests_per_second",
        "µs of CPU": "cpu_us",
        "p50 ms": "latency_ms p50",
        "p99 ms": "latency_ms p99",
        "server's CPU": "server_cpu_share",
        **LOAD_COLUMN,
    },
    "deploy": {
        "clients": "returned",
        "CPU s": "server_cpu_seconds",
        "p99 ms of those who stayed": "stayed_ms p99",
        "before": "stayed_before_ms p99",
        "attempts": "attempts",
        **LOAD_COLUMN,
    },
    "drops": {
        "delivered %": "delivered_percent",
        "to the worst client %": "least_percent",
        "cuts": "cuts",
        "gaps": "gaps",
        "CPU s": "server_cpu_seconds",
    },
    "chat": {**LATENCY_COLUMNS, "server's CPU": "server_cpu_share", **LOAD_COLUMN},
    "ticker": {
        "echo p50 ms": "echo_ms p50",
        "p99": "echo_ms p99",
        "p99.9": "echo_ms p99.9",
        "p99 without": "echo_ms p99 alone",
        "messages/s of a client": "ticks_per_second",
        "server's CPU": "server_cpu_share",
    },
    "http-beside": {
        "HTTP p50 ms": "http_ms p50",
        "p99": "http_ms p99",
        "p99 alone": "http_ms p99 alone",
        "echo p50 ms": "echo_ms p50",
        "echo p99": "echo_ms p99",
        "echo p99 alone": "echo_ms p99 alone",
        "server's CPU": "server_cpu_share",
    },
    "most": {"connections": "opened", "ms of CPU per second for pings": "ms_per_second"},
}


def cell(figures: dict[str, Any], key: str) -> str:
    value = figures[key]
    return f"{value:.0%}" if key.endswith("_share") else number(value)


def ratio_cell(case: dict[str, Any], name: str, ours: str) -> str:
    if name == ours:
        return "1"
    ratio = case["ratios"].get(name, {}).get("figure")
    return brackets(ratio) if ratio else ""


def machine_line(machine: dict[str, Any], data: dict[str, Any]) -> str:
    if machine["server_core"] is None:
        cores = "server and load not pinned"
    else:
        cores = f"server on core {machine['server_core']}, load on core {machine['load_core']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores{' (virtual)' if machine['virtual'] else ''}, "
        f"Linux {machine['kernel']}; {cores}; {data['rounds']} rounds of {data['seconds']:g} s, "
        f"{data['warmup']:g} s of warm-up. greenws commit {machine['commit']}, {machine['date']}."
    )


def plot(data: dict[str, Any], path: Path) -> bool:
    """Draws a panel for each case. False if matplotlib is not installed or nothing was measured."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    cases = {name: case for name, case in data["cases"].items() if case["servers"]}
    if not cases:
        return False
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    height = 0.9 + 0.27 * max(len(case["servers"]) for case in cases.values())
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(5.2 * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    panels = list(axes.flat)
    for panel in panels[len(cases) :]:
        panel.axis("off")
    for panel, case in zip(panels, cases.values(), strict=False):
        servers = case["servers"]
        names = sorted(servers, key=lambda name: servers[name]["figure"], reverse=True)
        values = [servers[name]["figure"] for name in names]
        forms = {name: "#8bc34a" for name in names if name.startswith("greenws")}
        forms[data["ours"]] = "#2e7d32"
        colours = [forms.get(name, "#9aa5b1") for name in names]
        panel.barh(names, values, color=colours)
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            ratio = case["ratios"].get(name, {}).get("figure")
            beside = f"  ({number(ratio['median'])}×)" if ratio else ""
            panel.text(value, index, f" {number(value)}{beside}", va="center", fontsize=7)
        if min(values) > 0 and max(values) / min(values) > 30:
            panel.set_xscale("log")
            panel.set_xlim(min(values) / 2, max(values) * 5)
        else:
            panel.set_xlim(0, max(values) * 1.35 or 1)
        title = textwrap.fill(case["what"], 60)
        panel.set_title(f"{title}\n{case['unit']}", fontsize=8)
        panel.tick_params(labelsize=7)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.suptitle("Cost of each server: lower is better", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def write_report(data: dict[str, Any], base: Path) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    table = render(data)
    base.with_suffix(".md").write_text(table)
    print(table)
    written = [base.with_suffix(".json"), base.with_suffix(".md")]
    if plot(data, base.with_suffix(".png")):
        written.append(base.with_suffix(".png"))
    else:
        print("No plot: matplotlib is not installed, or nothing was measured.", file=sys.stderr)
    print("Written:", ", ".join(os.path.relpath(path) for path in written), file=sys.stderr)


# --- the command line ----------------------------------------------------------------------------


def install() -> None:
    """Installs the rivals that are available for this machine."""
    requirements = (HERE / "requirements.txt").read_text().splitlines()
    for requirement in requirements:
        if not requirement or requirement.startswith("#"):
            continue
        command = [sys.executable, "-m", "pip", "install", "--quiet", requirement]
        if subprocess.run(command, check=False).returncode != 0:
            print(f"left out, because it could not be installed: {requirement}", file=sys.stderr)
    if not shutil.which("npm"):
        print("left out, because npm was not found: Node's ws and Bun", file=sys.stderr)
        return
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    if subprocess.run(command, cwd=HERE, check=False).returncode != 0:
        print("npm failed; Node's ws and Bun may be left out", file=sys.stderr)


def names(text: str) -> list[str]:
    return [name for name in text.replace(",", " ").split() if name]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=names, metavar="NAMES", help=f"some of: {', '.join(CASES)}")
    parser.add_argument(
        "--against",
        type=names,
        metavar="NAMES",
        help="some of: "
        + ", ".join(name for name in known_servers() if name != "greenws")
        + "; greenws@DIRECTORY is the greenws of another checkout",
    )
    parser.add_argument(
        "--ours", default="greenws", metavar="NAME", help="compare the others with it (greenws)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured in each round (2)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before that (0.5)")
    parser.add_argument(
        "--connections",
        type=int,
        metavar="N",
        help="at most N in the cases of deploys, drops, chats, HTTP and most idle connections",
    )
    parser.add_argument("--server-core", type=int, metavar="N", help="its core (the first one)")
    parser.add_argument("--load-core", type=int, metavar="N", help="its core (the second one)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="path of the report without suffix (results/results, or results/partial for a part)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="only render this report again; with --output several as one, or a part by --cases",
    )
    parser.add_argument("--install", action="store_true", help="only install the rivals")
    parser.add_argument(
        "--build", action="store_true", help="only build load.c and scenes.c; prints load's path"
    )
    arguments = parser.parse_args(argv)
    for group, names_of in CASE_GROUPS.items():
        if group in (arguments.cases or []):
            arguments.cases.remove(group)
            arguments.cases += names_of
    unknown = [name for name in arguments.cases or [] if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; choose from: {', '.join(CASES)}")
    partial = arguments.cases or len(arguments.report or ()) > 1
    if arguments.report and partial and not arguments.output:
        parser.error("--report with --cases or several reports needs --output")
    if arguments.rounds < 1 or arguments.seconds <= 0 or arguments.warmup < 0:
        parser.error("--rounds, --seconds and --warmup must be positive")
    return arguments


def probe(servers: list[Server]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Starts each server once; returns the versions of those that start, and why others did not."""
    versions, left_out = {}, {}
    case, anywhere = CASES["32B-1"], Options(0, 0, None, None, None)
    for server in servers:
        try:
            with Running(case, server, anywhere) as running:
                versions[server.name] = running.versions
        except Failure as failure:
            left_out[server.name] = str(failure)
    return versions, left_out


def choose_cores(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    chosen = [arguments.server_core, arguments.load_core]
    if None in chosen and len(cores) < 2:
        print("Only one core: server and load share it, and are not pinned.", file=sys.stderr)
        return None, None
    return (
        cores[0] if chosen[0] is None else chosen[0],
        cores[1] if chosen[1] is None else chosen[1],
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.install:
        install()
        return 0
    if arguments.report:
        earlier = merge([json.loads(path.read_text()) for path in arguments.report])
        if arguments.cases:
            cases = earlier["cases"]
            earlier["cases"] = {name: cases[name] for name in arguments.cases if name in cases}
        write_report(earlier, (arguments.output or arguments.report[0]).with_suffix(""))
        return 0
    build_load()
    if arguments.build:
        build_plain(SCENES)
        print(LOAD)
        return 0

    whole = not arguments.cases and not arguments.against
    base = arguments.output or HERE / "results" / ("results" if whole else "partial")
    servers = known_servers()
    ours = find_server(arguments.ours, servers)
    against = arguments.against or [name for name in servers if name != ours.name]
    rivals = [server for name in against if (server := find_server(name, servers)) != ours]
    cases = [CASES[name] for name in arguments.cases or CASES]

    if any(case.mode == "fairness" for case in cases):
        build_plain(FAIRNESS)
    if any(case.mode == "scene" for case in cases):
        build_plain(SCENES)
    rivals = [server for server in rivals if any(server.can(case) for case in cases)]
    versions, left_out = probe([ours, *rivals])
    if ours.name in left_out:
        raise SystemExit(f"{ours.name}: {left_out[ours.name]}")
    forms = {name: what.get("form") for name, what in versions.items()}
    for name, form in forms.items():
        if form == "pure" and forms[ours.name] == "compiled" and "pure" not in name:
            raise SystemExit(f"{name} runs in the pure form, but {ours.name} is compiled")
    if ours.name == "greenws" and forms["greenws"] == "pure" and "greenws-pure" in versions:
        del versions["greenws-pure"]
        left_out["greenws-pure"] = "greenws is not compiled here, so this would be the same"
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    rivals = [server for server in rivals if server.name in versions]

    server_core, load_core = choose_cores(arguments)
    data: dict[str, Any] = {
        "ours": ours.name,
        "against": [server.name for server in rivals],
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "warmup": arguments.warmup,
        "left_out": left_out,
        "versions": versions,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            arguments.seconds, arguments.warmup, server_core, load_core, None, arguments.connections
        )
        data["machine"] = describe_machine(options)
        if any(case.tls for case in cases):
            try:
                if "tls" not in load_features():
                    raise Failure("load.c was built without OpenSSL's headers (libssl-dev)")
                options.certificate = make_certificate(Path(folder))
            except (Failure, OSError, subprocess.CalledProcessError) as error:
                print(f"left out: the cases with TLS: {error}", file=sys.stderr)
                left_out["the cases with TLS"] = str(error)
                cases = [case for case in cases if not case.tls]
        if any(case.redis for case in cases) and not shutil.which("redis-server"):
            print("left out: the cases with Redis: redis-server was not found", file=sys.stderr)
            left_out["the cases with Redis"] = "redis-server was not found"
            cases = [case for case in cases if not case.redis]
        if any(case.deflate for case in cases) and "deflate" not in load_features():
            why = "load.c was built without zlib's headers (zlib1g-dev)"
            print(f"left out: the cases with permessage-deflate: {why}", file=sys.stderr)
            left_out["the cases with permessage-deflate"] = why
            cases = [case for case in cases if not case.deflate]
        pin(load_core)  # keeps this program off the server's core
        participants = {
            case.name: [server for server in rivals if server.can(case)] for case in cases
        }
        steps = {
            case.name: len(schedule(ours.name, [s.name for s in participants[case.name]], False))
            for case in cases
        }
        progress = Progress(arguments.rounds * sum(steps.values()))
        interrupted = False
        try:
            for case in cases:
                data["cases"][case.name] = run_case(
                    case, ours, participants[case.name], arguments.rounds, options, progress
                )
                warn_of_saturation(case, data["cases"][case.name], progress)
        except KeyboardInterrupt:
            progress.say("interrupted; the results so far:")
            base = arguments.output or HERE / "results" / "partial"
            interrupted = True
        progress.end()
    write_report(data, base)
    failed = [name for name, case in data["cases"].items() if ours.name in case["failures"]]
    if failed:
        print(f"{ours.name} FAILED in: {', '.join(failed)}", file=sys.stderr)
    if interrupted:
        return 130
    return 1 if failed or not data["cases"] else 0


def warn_of_saturation(case: Case, result: dict[str, Any], progress: Progress) -> None:
    for name, server in result["servers"].items():
        if server.get("load_cpu_share", 0) > SATURATED:
            progress.say(
                f"warning: in {case.name} against {name} the load generator used "
                f"{server['load_cpu_share']:.0%} of its core, so it limited rate and latency"
            )


if __name__ == "__main__":
    # SIGTERM ends it like Ctrl-C, so that no server is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
