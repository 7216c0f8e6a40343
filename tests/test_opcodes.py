"""Opcodes and close codes: the numbers of RFC 6455 and of the IANA registry."""

from __future__ import annotations

import pytest

from greenws.opcodes import CloseCode, OpcodeType, is_receivable, is_sendable

pytestmark = pytest.mark.no_io

REGISTERED = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
NEVER = [-1, 0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535, 65536]


def test_opcodes_have_the_numbers_of_the_rfc():
    assert {opcode.name: int(opcode) for opcode in OpcodeType} == {
        "CONTINUATION": 0,
        "TEXT": 1,
        "BINARY": 2,
        "CLOSE": 8,
        "PING": 9,
        "PONG": 10,
        "INVALID": -1,
    }


def test_close_codes_have_the_numbers_of_the_registry():
    assert {code.name: int(code) for code in CloseCode} == {
        "NORMAL": 1000,
        "GOING_AWAY": 1001,
        "PROTOCOL_ERROR": 1002,
        "UNSUPPORTED_DATA": 1003,
        "NO_STATUS_RECEIVED": 1005,
        "ABNORMAL": 1006,
        "INVALID_PAYLOAD": 1007,
        "POLICY_VIOLATION": 1008,
        "MESSAGE_TOO_BIG": 1009,
        "MANDATORY_EXTENSION": 1010,
        "INTERNAL_ERROR": 1011,
        "SERVICE_RESTART": 1012,
        "TRY_AGAIN_LATER": 1013,
        "BAD_GATEWAY": 1014,
        "TLS_HANDSHAKE": 1015,
    }


def test_what_a_peer_may_send_below_3000_is_what_is_registered():
    assert {code for code in range(3000) if is_receivable(code)} == REGISTERED


@pytest.mark.parametrize("code", [3000, 3999, 4000, 4999])
def test_codes_of_libraries_and_applications_may_be_sent(code):
    assert is_receivable(code)
    assert is_sendable(code)
    assert is_sendable(code, client=True)


@pytest.mark.parametrize("code", NEVER)
def test_codes_that_nobody_may_send(code):
    assert not is_receivable(code)
    assert not is_sendable(code)
    assert not is_sendable(code, client=True)


def test_a_server_may_send_what_it_may_receive_but_for_1010():
    assert {code for code in range(3000) if is_sendable(code)} == REGISTERED - {1010}
    assert {code for code in range(3000) if is_sendable(code, client=True)} == REGISTERED
