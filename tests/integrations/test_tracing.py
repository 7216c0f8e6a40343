"""Sentry and OpenTelemetry around a Flask application: a failed session is an error to both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.processes import PROGRAMS, Process
from ..support.wire import TEXT, Peer, close_frame, frame


@pytest.fixture(scope="module")
def traced() -> Iterator[Process]:
    with Process(PROGRAMS / "traced_app.py") as process:
        yield process.wait_for_port()


def fail(process: Process) -> None:
    with Peer.open(process.address, "/ws") as peer:
        peer.send(frame(TEXT, b"fail"))
        assert peer.read_frame() == (True, 8, b"\x03\xf3")
        peer.send(close_frame(1011))
        assert peer.at_end()


def succeed(process: Process) -> None:
    with Peer.open(process.address, "/ws") as peer:
        peer.send(close_frame(1000))
        assert peer.read_close() == (1000, b"")


def test_a_failed_session_is_one_error_and_a_failed_span(traced):
    fail(traced)
    traced.wait_for("^sentry transaction ws internal_error$")
    traced.wait_for("^span GET /ws ERROR LookupError$")
    succeed(traced)
    traced.wait_for("^sentry transaction ws ok$")
    traced.wait_for("^span GET /ws UNSET$")
    assert traced.lines.count("sentry error ws None LookupError") == 1
    assert traced.output.count("Traceback") == 1


def test_the_span_of_the_request_may_end_at_the_101():
    with Process(PROGRAMS / "traced_app.py", "--spans-end-at-101") as process:
        process.wait_for_port()
        with Peer.open(process.address, "/ws") as peer:
            process.wait_for("^span GET /ws UNSET$")
            process.wait_for("^sentry transaction ws ok$")
            peer.send(frame(TEXT, b"fail"))
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        process.wait_for("^span GET /ws session ERROR LookupError$")
        process.wait_for("^sentry transaction ws internal_error$")
        succeed(process)
        process.wait_for("^span GET /ws session UNSET$")
        errors = [line for line in process.lines if line.startswith("sentry error ws ")]
        assert [line.split()[-1] for line in errors] == ["LookupError"]
        assert "ended span" not in process.output
