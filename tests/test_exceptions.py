"""The error tree, and the attributes of its errors."""

from __future__ import annotations

import inspect
import pickle

import pytest

from greenws import exceptions
from greenws.exceptions import (
    ConcurrentReadError,
    ConnectionClosed,
    GreenwsError,
    HandshakeError,
    InvalidPayload,
    MessageTooBig,
    PolicyViolation,
    ProtocolError,
)

pytestmark = pytest.mark.no_io


def test_every_error_of_the_module_is_exported_and_has_the_one_root():
    errors = {
        name: value
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert sorted(errors) == sorted(exceptions.__all__)
    assert all(issubclass(error, GreenwsError) for error in errors.values())
    assert not issubclass(GreenwsError, (OSError, ValueError, RuntimeError))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProtocolError, 1002),
        (InvalidPayload, 1007),
        (PolicyViolation, 1008),
        (MessageTooBig, 1009),
    ],
)
def test_a_protocol_error_carries_its_close_code(error, code):
    assert issubclass(error, ProtocolError)
    assert error("what was wrong").close_code == code
    assert str(error("what was wrong")) == "what was wrong"


def test_a_refused_handshake_carries_status_headers_and_its_line():
    error = HandshakeError("Not like this.", 426, [("Sec-WebSocket-Version", "13")])
    assert str(error) == "Not like this."
    assert error.status == 426
    assert error.headers == [("Sec-WebSocket-Version", "13")]


def test_a_refused_handshake_is_400_without_headers_unless_it_says_otherwise():
    first, second = HandshakeError("a"), HandshakeError("b")
    assert first.status == 400
    first.headers.append(("Allow", "GET"))
    assert second.headers == []


def test_connection_closed_carries_code_and_reason():
    error = ConnectionClosed(1001, "shutting down")
    assert (error.code, error.reason) == (1001, "shutting down")
    assert ConnectionClosed(1000).reason == ""


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        (1000, "", "connection closed: 1000 (normal)"),
        (1001, "bye", "connection closed: 1001 (going away) bye"),
        (1006, "", "connection closed: 1006 (abnormal)"),
        (3000, "", "connection closed: 3000 (application code)"),
        (4999, "x y", "connection closed: 4999 (application code) x y"),
        (2999, "", "connection closed: 2999 (unknown code)"),
        (5000, "", "connection closed: 5000 (unknown code)"),
    ],
)
def test_connection_closed_says_what_its_code_means(code, reason, text):
    assert str(ConnectionClosed(code, reason)) == text


def test_connection_closed_survives_a_pickle():
    error = pickle.loads(pickle.dumps(ConnectionClosed(4000, "moved")))
    assert (error.code, error.reason) == (4000, "moved")


def test_a_handshake_error_survives_a_pickle():
    error = pickle.loads(pickle.dumps(HandshakeError("No.", 405, [("Allow", "GET")])))
    assert (str(error), error.status, error.headers) == ("No.", 405, [("Allow", "GET")])


def test_a_concurrent_read_is_a_runtime_error_too():
    assert issubclass(ConcurrentReadError, RuntimeError)
