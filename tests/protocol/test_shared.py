"""A message to many sockets is encoded once."""

from __future__ import annotations

import zlib

import pytest

import greenws
from greenws.protocol.connection import Connection
from greenws.protocol.deflate import Deflate, Parameters
from greenws.protocol.shared import SharedBatch, SharedMessage

from ..support.wire import BINARY, TEXT, frame

SERVER = Connection(greenws.Config(), False)
CLIENT = Connection(greenws.Config(), True)


@pytest.mark.parametrize(("data", "opcode"), [("grün", TEXT), (b"\x00\xff", BINARY), ("", TEXT)])
def test_a_server_s_frame_is_whole_and_unmasked(data, opcode):
    payload = data.encode() if isinstance(data, str) else data
    assert SharedMessage(data).frame(SERVER) == frame(opcode, payload, mask=None)


def test_all_servers_share_one_frame():
    message = SharedMessage("x" * 1000)
    assert message.frame(SERVER) is message.frame(Connection(greenws.Config(), False))


def test_a_client_s_frame_has_a_mask_of_its_own():
    message = SharedMessage("hello")
    first, second = message.frame(CLIENT), message.frame(CLIENT)
    assert first == frame(TEXT, b"hello", mask=first[2:6])
    assert second == frame(TEXT, b"hello", mask=second[2:6])
    assert first != second


def deflating(**options):
    takeover = options.pop("takeover", False)
    parameters = Parameters(not takeover, True)
    config = greenws.Config(deflate_threshold=0, **options)
    return Connection(config, False, Deflate(parameters, config))


def test_connections_that_compress_alike_share_one_frame():
    message = SharedMessage("x" * 1000)
    compressed = message.frame(deflating())
    assert message.frame(deflating()) is compressed
    assert message.frame(SERVER) == frame(TEXT, b"x" * 1000, mask=None)
    assert message.frame(deflating(deflate_level=9)) is not compressed
    head, body = compressed[:2], compressed[2:]
    assert head == bytes((0x80 | 0x40 | TEXT, len(body)))
    assert zlib.decompressobj(-15).decompress(body + b"\x00\x00\xff\xff") == b"x" * 1000


def test_connections_with_a_history_compress_for_themselves():
    message = SharedMessage("abc" * 300)
    first, second = deflating(takeover=True), deflating(takeover=True)
    inflater = zlib.decompressobj(-15)
    for protocol in (first, first):
        data = message.frame(protocol)[2:] + b"\x00\x00\xff\xff"
        assert inflater.decompress(data) == b"abc" * 300
    assert len(message.frame(first)) < len(message.frame(second))  # which refers back to nothing


def test_a_batch_is_its_messages_one_after_another():
    messages = [SharedMessage("x" * 1000), SharedMessage(b"y")]
    batch = SharedBatch(messages)
    assert (messages[0].count, batch.count) == (1, 2)
    for connection in (SERVER, deflating()):
        assert batch.frame(connection) == b"".join(each.frame(connection) for each in messages)
    assert batch.frame(SERVER) is batch.frame(SERVER)


def test_a_batch_keeps_the_history_of_each_connection():
    batch = SharedBatch([SharedMessage("abc" * 300)] * 2)
    connection, twin = deflating(takeover=True), deflating(takeover=True)
    expected = b"".join(SharedMessage("abc" * 300).frame(twin) for _ in range(2))
    assert batch.frame(connection) == expected
    assert batch.frame(connection) != expected
