"""A MariaDB of the tests' own, in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from typing import Any

from .limits import limit
from .require import require

__all__ = ["MariaDbServer"]


class MariaDbServer:
    """Without its own tables (users and rights), and without syncing; its data goes when it is
    closed. It has a database ``test``."""

    def __init__(self) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        program = shutil.which("mariadbd", path=path)
        require(program, "MariaDB")
        require(importlib.util.find_spec("pymysql"), "PyMySQL")
        assert program is not None
        self._folder = tempfile.TemporaryDirectory(prefix="greenws-my-")
        self.socket = f"{self._folder.name}/socket"
        os.mkdir(f"{self._folder.name}/data")
        options = [
            f"--datadir={self._folder.name}/data",
            f"--socket={self.socket}",
            f"--pid-file={self._folder.name}/pid",
            "--skip-networking",
            "--skip-grant-tables",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=8M",
            "--innodb-log-file-size=4M",
            "--key-buffer-size=1M",
            "--aria-pagecache-buffer-size=1M",
        ]
        if os.getuid() == 0:
            options.append("--user=root")
        self._process = subprocess.Popen(
            [program, "--no-defaults", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + limit(20)
            while not self._answers():
                assert time.monotonic() < deadline, "MariaDB does not start"
                time.sleep(0.02)
            self.call("CREATE DATABASE test")
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        import pymysql

        assert self._process.poll() is None, "MariaDB has ended"
        try:
            return bool(self.call("SELECT 1"))
        except pymysql.OperationalError:
            return False

    def url(self, driver: str = "pymysql", database: str = "test") -> str:
        """For SQLAlchemy."""
        return f"mysql+{driver}://root@/{database}?unix_socket={self.socket}"

    def call(self, statement: str, database: str | None = None) -> Any:
        """The rows that a statement gives, on a connection of its own."""
        import pymysql

        with pymysql.connect(
            unix_socket=self.socket, user="root", database=database, autocommit=True
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall()

    def connections(self, database: str = "test") -> int:
        """How many clients are connected to ``database``."""
        ((count,),) = self.call(
            f"SELECT count(*) FROM information_schema.processlist WHERE db = '{database}'"
        )
        return int(count)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(limit(20))
        self._folder.cleanup()
