"""A real PostgreSQL in a folder of its own, reached by a Unix socket in it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from .limits import limit
from .require import require


def _find(program: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which(program, path=path)


class PostgresServer:
    """Without fsync; its data goes when it is closed. Runs as the user postgres, since it refuses
    to run as root."""

    def __init__(self) -> None:
        initdb, postgres = _find("initdb"), _find("postgres")
        require(initdb and postgres, "PostgreSQL")
        self._folder = tempfile.TemporaryDirectory(prefix="greenws-pg-")
        self.host = self._folder.name
        self._user: str | None = None
        if os.getuid() == 0:
            self._user = "postgres"
            user = pwd.getpwnam(self._user)
            os.chown(self.host, user.pw_uid, user.pw_gid)
        os.chmod(self.host, 0o755)
        data = str(Path(self.host, "data"))
        options = ["--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8"]
        self._run([initdb, "--pgdata", data, *options]).check_returncode()
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.host,
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "max_connections": "50",
            "shared_buffers": "8MB",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._process = subprocess.Popen(
            [postgres, "-D", data, *arguments],
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self.host,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + limit(20)
        while not self._answers():
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.02)

    def _run(self, command: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self.host,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def _answers(self) -> bool:
        assert self._process.poll() is None, "PostgreSQL has ended"
        try:
            return bool(self.call("SELECT 1"))
        except psycopg.OperationalError:
            return False

    def url(self, driver: str = "psycopg", database: str = "postgres") -> str:
        """For SQLAlchemy."""
        return f"postgresql+{driver}://postgres@/{database}?host={self.host}"

    def call(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows that a statement gives, on a connection of its own."""
        with psycopg.connect(
            host=self.host, user="postgres", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def connections(self, database: str = "postgres") -> int:
        """How many clients are connected to ``database``, without this call's own."""
        ((count,),) = self.call(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            f"AND backend_type = 'client backend' AND datname = '{database}'"
        )
        return int(count)

    def close(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once
        self._process.wait(limit(20))
        self._folder.cleanup()
