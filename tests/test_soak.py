"""Many sessions at once, for a while: no error, and nothing is left in the server.

``GREENWS_SOAK_SECONDS`` says for how long; in CI (``GREENWS_REQUIRE_ALL``) it is a minute. For the
first tenth of it they send as fast as they can, then five messages a second each, which leaves the
processors to other tests.
"""

from __future__ import annotations

import json
import os

import gevent
from gevent.event import Event

from .support.limits import limit, wait_until
from .support.processes import PROGRAMS, Process
from .support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame

SESSIONS = 200
PAUSE = 0.2  # seconds between two messages of a session, once it is calm
SECONDS = float(
    os.environ.get("GREENWS_SOAK_SECONDS")
    or ("60" if os.environ.get("GREENWS_REQUIRE_ALL") == "1" else "3")
)


def test_200_sessions_echo_without_an_error_and_leave_nothing_behind():
    process = Process(PROGRAMS / "soak_server.py")
    try:
        process.wait_for_port()
        is_calm, is_over = Event(), Event()
        is_over.set()
        run(process.address, 0, is_calm, is_over)  # makes what a process has once, an epoll
        wait_until(lambda: state(process.address)["greenlets"] == 1)  # the one that tells
        before = state(process.address)
        is_over.clear()
        sessions = [
            gevent.spawn(run, process.address, i, is_calm, is_over) for i in range(SESSIONS)
        ]
        expected = before["descriptors"] + SESSIONS
        wait_until(lambda: state(process.address)["descriptors"] >= expected, 20)
        gevent.sleep(0.1 * SECONDS)
        is_calm.set()
        gevent.sleep(0.9 * SECONDS)
        is_over.set()
        counts = [session.get(timeout=limit(20)) for session in sessions]
        print(f"{sum(counts)} messages in {SECONDS:g} s over {SESSIONS} sessions")
        wait_until(lambda: state(process.address) == before)
        assert "Traceback" not in process.output
    finally:
        process.stop()


def run(address, index, is_calm, is_over):
    """Echoes until it is over, and at least once; how often."""
    opcode = TEXT if index % 2 else BINARY
    payload = f"session {index:03}: {'x' * 19}".encode()
    assert len(payload) == 32
    data = frame(opcode, payload)
    count = 0
    with Peer.open(address, "/echo") as peer:
        while not count or not is_over.is_set():
            peer.send(data)
            assert read_message(peer) == (True, opcode, payload)
            count += 1
            if is_calm.is_set():
                is_over.wait(PAUSE)
        peer.send(close_frame())
        assert read_message(peer) == (True, CLOSE, (1000).to_bytes(2, "big"))
        assert peer.at_end()
    return count


def read_message(peer):
    """The next frame; keepalive pings are answered and skipped."""
    while (received := peer.read_frame())[1] == PING:
        peer.send(frame(PONG, received[2]))
    return received


def state(address):
    with Peer.connect(address) as peer:
        peer.send(b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n")
        return json.loads(peer.read_response().body)
