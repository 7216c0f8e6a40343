"""Processes whose main thread exits while daemon threads are in a hub."""

from __future__ import annotations

import signal

import pytest

from ..support.limits import limit
from ..support.processes import PROGRAMS, Process, connect


@pytest.mark.parametrize("kind", ["server", "threads", "client", "blocked", "joined", "flushing"])
def test_a_process_with_sessions_in_daemon_threads_exits_with_its_own_code(kind):
    with Process(PROGRAMS / "exiting_server.py", kind) as process:
        process.wait_for_port()
        with connect(process.url("/echo")), connect(process.url("/echo")) as busy:
            busy.send("hello")
            assert busy.recv(timeout=limit(20)) == "hello"
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(limit(20)) == 3, process.output
    process.assert_no_trouble()
