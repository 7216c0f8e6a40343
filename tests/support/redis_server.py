"""A real Redis, on a port of its own; it can be stopped, killed and started again."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from typing import Any

import gevent
import redis

from .limits import limit
from .processes import free_port


class RedisServer:
    """``redis-server`` with its data in a folder that is removed with it; it keeps what it has
    acknowledged, also when it is killed."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="greenws-redis-")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *options: str) -> None:
        """Does nothing if it runs already. ``options``: for this time."""
        if self._process is not None:
            return
        # With its usual "everysec", it answers before it writes while a slow disk is being synced.
        self._process = subprocess.Popen(
            [*self._command(), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + limit(20)
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server does not start"
            gevent.sleep(0.01)

    def _command(self) -> list[str]:
        return [
            *["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            *["--appendonly", "yes", "--appendfsync", "no", "--dir", self._folder.name],
            *["--loglevel", "warning", *self._options],
        ]

    def _answers(self) -> bool:
        try:
            return bool(self.call("PING"))
        except redis.ConnectionError:  # also while it loads its data
            return False

    def call(self, *command: Any) -> Any:
        """What redis-cli would answer."""
        with redis.Redis(port=self.port, socket_timeout=limit(20)) as client:
            return client.execute_command(*command)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(limit(20))
            self._process = None

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        self._folder.cleanup()
