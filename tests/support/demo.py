"""run_server.py in a process, and its clients, of the ``websockets`` package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websockets_connect
from websockets.typing import Subprotocol

from .limits import limit
from .paths import ROOT

RUN_SERVER = ROOT / "run_server.py"


class Demo:
    """run_server.py in a process of its own, whose lines of output can be waited for."""

    def __init__(self, *arguments: str, cwd: Path | None = None, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(RUN_SERVER), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=cwd,
            env={**os.environ, **env},
        )
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, lines: list[str], pattern: str) -> re.Match[str]:
        """The first match in ``lines``, which is ``stdout`` or ``stderr`` of this object."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in lines)), None)

        def ended() -> bool:
            return not any(reader.is_alive() for reader in self._readers)

        with self._changed:
            self._changed.wait_for(lambda: found() or ended(), limit(20))
            match = found()
        assert match, f"no line {pattern!r} in {self.stdout + self.stderr}"
        return match

    @property
    def url(self) -> str:
        """The address that it printed, without the slash at its end."""
        return self.wait_for(self.stdout, r"https?://\S+(?=/ )").group()

    @property
    def ws_url(self) -> str:
        return re.sub("^http", "ws", self.url)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def exit_code(self) -> int:
        code = self.process.wait(limit(20))
        for reader in self._readers:
            reader.join(limit(20))
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.exit_code()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.exit_code()

    def end(self) -> None:
        """Politely if it lets one: a process that is killed leaves its files behind."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit())
        self.kill()


@contextlib.contextmanager
def running(*arguments: str, cwd: Path | None = None, **env: str) -> Iterator[Demo]:
    demo = Demo(*arguments, cwd=cwd, **env)
    try:
        yield demo
    finally:
        demo.end()
        print(*demo.stdout, *demo.stderr, sep="\n")  # pytest shows it if the test has failed


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which is expected to come by itself."""
    command = [sys.executable, str(RUN_SERVER), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        timeout=limit(20),
        env={**os.environ, **env},
    )


def connect(url: str, protocol: str, **options: Any) -> ClientConnection:
    """A client of the ``websockets`` package, which is to be entered as a context manager."""
    options = {"open_timeout": limit(20), **options}
    connection: ClientConnection = websockets_connect(
        url, subprotocols=[Subprotocol(protocol)], proxy=None, **options
    )
    return connection


def narrow_socket(demo: Demo) -> socket.socket:
    """A connection with a small receive buffer, for a client that does not read."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.settimeout(limit(20))
    narrow.connect(("127.0.0.1", demo.port))
    return narrow


def closed_with(connection: ClientConnection) -> int | None:
    """Read until the connection ends; the close code."""
    with pytest.raises(ConnectionClosed):
        while True:
            connection.recv(timeout=limit(20))
    return connection.close_code


class Member:
    """One client of the chat, which speaks JSON objects."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, event: object) -> None:
        self.connection.send(json.dumps(event))

    def say(self, text: str) -> None:
        self.send({"type": "message", "text": text})

    def receive(self) -> dict[str, Any]:
        event = json.loads(self.connection.recv(timeout=limit(20)))
        assert isinstance(event, dict)
        return event

    def expect(self, **expected: Any) -> dict[str, Any]:
        """The next event, which must have these values."""
        event = self.receive()
        assert expected.items() <= event.items(), event
        return event

    def join(self, name: str, **more: str) -> dict[str, Any]:
        """Join, and skip the event of joining; the welcome."""
        self.send({"type": "join", "name": name, **more})
        welcome = self.expect(type="welcome")
        self.expect(type="joined", name=welcome["name"])
        return welcome


class Watcher:
    """A client that reads the snapshots of the server."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def next(self) -> dict[str, Any]:
        snapshot = json.loads(self.connection.recv(timeout=limit(20)))
        assert isinstance(snapshot, dict)
        return snapshot

    def wait_for(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + limit(20)
        while not condition(snapshot := self.next()):
            assert time.monotonic() < deadline, snapshot
        return snapshot


# What fixtures give.
ClientFactory = Callable[..., ClientConnection]
MemberFactory = Callable[..., Member]
