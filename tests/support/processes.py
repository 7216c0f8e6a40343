"""Other people's servers, and programs of our own, each in a process whose output can be read.

They monkey-patch, fork and start threads, so they cannot share the process of the tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as native_connect

from .limits import limit
from .paths import PROGRAMS, ROOT

TROUBLE = re.compile(r"Traceback|\b(ERROR|CRITICAL|Exception|Error)\b")


class Process:
    """``python *arguments``, or another program. Its output, stdout and stderr together, is in
    ``lines``."""

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        program: str | Path = sys.executable,
        **env: str,
    ) -> None:
        path = os.pathsep.join(
            [str(ROOT), str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        # gunicorn puts a control socket there, which must not be another gunicorn's.
        self._runtime = tempfile.TemporaryDirectory(prefix="greenws-")
        self.popen = subprocess.Popen(
            [str(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONUNBUFFERED": "1",
                "XDG_RUNTIME_DIR": self._runtime.name,
                **env,
            },
        )
        self.lines: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str, start: int = 0) -> re.Match[str]:
        """Blocks until a line matches, from the line with the index ``start`` on."""

        def found() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in self.lines[start:])
            return next(filter(None, matches), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), limit(20))
            match = found()
        assert match, f"no line {pattern!r} in:\n{self.output}"
        return match

    def wait_for_port(self, pattern: str = r"://127\.0\.0\.1:(\d+)", start: int = 0) -> Process:
        self.port = int(self.wait_for(pattern, start)[1])
        return self

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def url(self, path: str = "/", scheme: str = "ws") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        """Ends it: politely, and by force after five seconds."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(limit())
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        self._reader.join(limit())
        self._runtime.cleanup()

    def assert_no_trouble(self) -> None:
        """Fails if a line of the output speaks of an error."""
        troubles = [line for line in self.lines if TROUBLE.search(line)]
        assert not troubles, self.output

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        print(self.output)  # pytest shows it if the test has failed


_connections: list[ClientConnection] = []


@contextlib.contextmanager
def connect(url: str, **options: Any) -> Iterator[ClientConnection]:
    """websockets' client, with limits in time and without one in size.

    The connections are kept: each has weak proxies to itself, and a dead proxy would disturb the
    watch over what a test leaves behind.
    """
    options = {"proxy": None, "max_size": None, "open_timeout": limit(20), **options}
    with native_connect(url, close_timeout=limit(20), **options) as connection:
        _connections.append(connection)
        yield connection


def children(pid: int) -> list[int]:
    """The child processes of ``pid``: gunicorn's workers."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process lead to, without their numbers."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(re.sub(r"\d+", "", os.readlink(entry)))
        except OSError:  # closed meanwhile
            continue
    return sorted(found)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def free_port() -> int:
    """A port for programs that cannot tell which one they were given: none that the kernel gives
    to somebody else meanwhile, as those that it chooses itself."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def environ_without_coverage() -> dict[str, str]:
    """For a program that coverage would make import gevent, or run too slowly."""
    return {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
