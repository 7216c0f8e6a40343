"""A message to many sockets is encoded once."""

from __future__ import annotations

import pytest
from wire import BINARY, TEXT, frame

import greenws
from greenws.protocol import Protocol
from greenws.shared import SharedMessage

SERVER = Protocol(greenws.Config(), False)
CLIENT = Protocol(greenws.Config(), True)


@pytest.mark.parametrize(("data", "opcode"), [("grün", TEXT), (b"\x00\xff", BINARY), ("", TEXT)])
def test_a_server_s_frame_is_whole_and_unmasked(data, opcode):
    payload = data.encode() if isinstance(data, str) else data
    assert SharedMessage(data).frame(SERVER) == frame(opcode, payload, mask=None)


def test_all_servers_share_one_frame():
    message = SharedMessage("x" * 1000)
    assert message.frame(SERVER) is message.frame(Protocol(greenws.Config(), False))


def test_a_client_s_frame_has_a_mask_of_its_own():
    message = SharedMessage("hello")
    first, second = message.frame(CLIENT), message.frame(CLIENT)
    assert first == frame(TEXT, b"hello", mask=first[2:6])
    assert second == frame(TEXT, b"hello", mask=second[2:6])
    assert first != second
