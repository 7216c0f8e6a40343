"""How many tests of handlers run in a minute on one core: each opens a session through the pytest
plugin, with a handshake, exchanges ten messages, and ends it.

python benchmarks/testing.py --tests 1000    (the time includes pytest's start)
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = """
import flask
import pytest

from greenws import Routes, WebSocketHandler, WebSocketSessionHandler

class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)

handler = WebSocketHandler(lambda request, protocols: Echo())
routes = Routes()
routes.add(uri="/echo", handler=handler)
app = flask.Flask("app")
app.add_url_rule("/echo", view_func=lambda: handler)

@pytest.mark.parametrize("number", range({count}))
@pytest.mark.parametrize("application", [{application}])
def test_echo(websocket, application, number):
    socket = websocket(application, "/echo")
    for message in range(10):
        socket.send(f"{{number}} {{message}}")
        assert socket.receive() == f"{{number}} {{message}}"
"""


def measure(application: str, count: int) -> tuple[float, float]:
    """Seconds, on the clock and of the processor, for so many tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_many.py"
        path.write_text(TESTS.format(application=application, count=count))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if f"{count} passed" not in done.stdout:
        raise SystemExit(done.stdout + done.stderr)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=1000)
    count = parser.parse_args().tests
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for application in ("routes", "app"):
        seconds, busy = measure(application, count)
        name = "Routes" if application == "routes" else "Flask"
        print(
            f"{name}: {count} tests in {seconds:.1f} s ({busy:.1f} s of one core), "
            f"{count / busy * 60:.0f} a minute"
        )


if __name__ == "__main__":
    main()
