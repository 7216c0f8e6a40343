"""Two other implementations, ``websockets`` and ``wsproto``, as oracles.

What they encode we decode identically, what we encode they decode identically, and what is wrong
they refuse with the code with which we refuse it. Where they differ, the difference is asserted,
with its reason: none of them is a mistake of ours as far as RFC 6455 goes.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.extensions.permessage_deflate import PerMessageDeflate as WebsocketsDeflate
from websockets.frames import Opcode
from websockets.protocol import OPEN as WEBSOCKETS_OPEN
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.protocol import Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from wsproto import ConnectionType, WSConnection
from wsproto import events as wsproto_events
from wsproto.connection import Connection as WsprotoConnection
from wsproto.connection import ConnectionState as WsprotoState
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from greenws.config import Config
from greenws.exceptions import HandshakeError
from greenws.protocol.connection import Connection
from greenws.protocol.deflate import Deflate, Parameters, accept_offer, make_offer
from greenws.protocol.handshake import (
    accept_response,
    check_response,
    client_request,
    new_key,
    parse_request,
)

from ..support import wire
from ..support.examples import examples
from ..support.sansio import INVALID_UTF8, VALID_UTF8, cut, drive, environ_of, octets
from ..support.wire import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, close_frame, frame

# In the registry of IANA, and not in the table of wsproto.
UNKNOWN_TO_WSPROTO = {1014}


class Ours:
    """greenws, with the interface that all three have here.

    ``events``: ("text" or "binary", payload, final), ("ping", payload), ("close", code, reason).
    A pong is ("pong", payload); ours are not told unless they answer a ping, so they are left out.
    """

    def __init__(self, client: bool, agreed: Parameters | None = None) -> None:
        config = Config(max_message_size=None, max_fragments=None, deflate_threshold=0)
        deflate = None if agreed is None else Deflate(agreed, config, client)
        self.protocol = Connection(config, client, deflate)
        self.kind = ""

    def receive(self, *chunks: bytes) -> list[tuple]:
        events: list[tuple] = []
        for opcode, data, extra in drive(self.protocol, *chunks):
            if opcode == CLOSE:
                events.append(("close", data, extra))
                continue
            assert opcode != PONG
            self.kind = {TEXT: "text", BINARY: "binary"}.get(opcode, self.kind)
            events.append((self.kind, data, extra))
        return events

    def send(self, kind: str, payload: bytes, final: bool = True) -> bytes:
        opcode = self.protocol.begin_message(TEXT if kind == "text" else BINARY, final)
        if self.protocol.deflate is not None:
            opcode, payload = self.protocol.compress(opcode, final, payload, None)
        return self.protocol.encode(opcode, final, payload)

    def ping(self, payload: bytes) -> bytes:
        return self.protocol.ping(payload, False)[1]

    def pong(self, payload: bytes) -> bytes:
        return self.protocol.pong(payload)

    def close(self, code: int | None, reason: str) -> bytes:
        return self.protocol.close(1005 if code is None else code, reason)


class Websockets:
    def __init__(self, client: bool, agreed: Parameters | None = None) -> None:
        side = Side.CLIENT if client else Side.SERVER
        self.protocol = WebsocketsProtocol(side, max_size=None)
        if agreed is not None:
            ours, theirs = (agreed[1::2], agreed[0::2]) if client else (agreed[0::2], agreed[1::2])
            self.protocol.extensions = [
                WebsocketsDeflate(theirs[0], ours[0], theirs[1] or 15, ours[1] or 15)
            ]
        self.kind = ""
        self.open = False

    def receive(self, *chunks: bytes) -> list[tuple]:
        events: list[tuple] = []
        for chunk in chunks:
            if chunk:
                self.protocol.receive_data(chunk)
        for event in self.protocol.events_received():
            if event.opcode is Opcode.CLOSE:
                received = self.protocol.close_rcvd
                events.append(("close", int(received.code), received.reason))
            elif event.opcode is Opcode.PING:
                events.append(("ping", bytes(event.data)))
            elif event.opcode is Opcode.PONG:
                events.append(("pong", bytes(event.data)))
            else:
                if event.opcode is not Opcode.CONT:
                    self.kind = "text" if event.opcode is Opcode.TEXT else "binary"
                events.append((self.kind, bytes(event.data), event.fin))
        if self.protocol.parser_exc is not None:
            events.append(("close", int(self.protocol.close_sent.code), None))
        return events

    def _sent(self) -> bytes:
        return b"".join(self.protocol.data_to_send())

    def send(self, kind: str, payload: bytes, final: bool = True) -> bytes:
        if self.open:
            self.protocol.send_continuation(payload, final)
        elif kind == "text":
            self.protocol.send_text(payload, final)
        else:
            self.protocol.send_binary(payload, final)
        self.open = not final
        return self._sent()

    def ping(self, payload: bytes) -> bytes:
        self.protocol.send_ping(payload)
        return self._sent()

    def pong(self, payload: bytes) -> bytes:
        self.protocol.send_pong(payload)
        return self._sent()

    def close(self, code: int | None, reason: str) -> bytes:
        self.protocol.send_close(code, reason)
        return self._sent()


class Wsproto:
    def __init__(self, client: bool, agreed: Parameters | None = None) -> None:
        extensions = []
        if agreed is not None:
            extensions.append(WsprotoDeflate())
            extensions[0].finalize(str(agreed))
        role = ConnectionType.CLIENT if client else ConnectionType.SERVER
        self.connection = WsprotoConnection(role, extensions)

    def receive(self, *chunks: bytes) -> list[tuple]:
        events: list[tuple] = []
        for chunk in chunks:
            if (
                self.connection.state is not WsprotoState.OPEN
                or events[-1:]
                and (events[-1][0] == "close")
            ):
                break
            self.connection.receive_data(chunk)
            for event in self.connection.events():
                if isinstance(event, wsproto_events.TextMessage):
                    events.append(("text", event.data, event.message_finished))
                elif isinstance(event, wsproto_events.BytesMessage):
                    events.append(("binary", bytes(event.data), event.message_finished))
                elif isinstance(event, wsproto_events.Ping):
                    events.append(("ping", bytes(event.payload)))
                elif isinstance(event, wsproto_events.Pong):
                    events.append(("pong", bytes(event.payload)))
                else:
                    events.append(("close", int(event.code), event.reason))
                    break
        return events

    def send(self, kind: str, payload: bytes, final: bool = True) -> bytes:
        if kind == "text":  # takes whole characters only
            return self.connection.send(
                wsproto_events.TextMessage(data=payload.decode(), message_finished=final)
            )
        return self.connection.send(
            wsproto_events.BytesMessage(data=payload, message_finished=final)
        )

    def ping(self, payload: bytes) -> bytes:
        return self.connection.send(wsproto_events.Ping(payload=payload))

    def pong(self, payload: bytes) -> bytes:
        return self.connection.send(wsproto_events.Pong(payload=payload))

    def close(self, code: int | None, reason: str) -> bytes:
        return self.connection.send(
            wsproto_events.CloseConnection(code=1005 if code is None else code, reason=reason)
            if code is not None
            else wsproto_events.CloseConnection(code=None, reason=None)
        )


ORACLES = pytest.mark.parametrize("oracle", [Websockets, Wsproto])
ROLES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])


def messages(events: list[tuple]) -> list[tuple]:
    """Whole messages and the close; text as bytes, as ``websockets`` gives it."""
    found: list[tuple] = []
    parts: list[bytes] = []
    for kind, *rest in events:
        if kind in ("text", "binary"):
            data, final = rest
            parts.append(data.encode() if isinstance(data, str) else data)
            if final:
                found.append((kind, b"".join(parts)))
                parts = []
        elif kind == "close":
            found.append((kind, *rest))
    return found


def pings(events: list[tuple]) -> list[bytes]:
    return [event[1] for event in events if event[0] == "ping"]


# -- what is right

_TEXT = st.tuples(st.just("text"), st.lists(st.text(max_size=8), min_size=1, max_size=4))
_BINARY = st.tuples(
    st.just("binary"),
    st.lists(
        st.one_of(st.binary(max_size=8), st.sampled_from([bytes(125), bytes(126), bytes(65536)])),
        min_size=1,
        max_size=4,
    ),
)
_STREAMS = st.lists(st.tuples(st.one_of(_TEXT, _BINARY), st.binary(max_size=5)), max_size=4)
_CLOSES = st.one_of(
    st.just((None, "")),
    st.tuples(
        st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 3000, 3999, 4000, 4999]),
        st.text(max_size=30),
    ),
)


def talk(sender, stream, close, between: bool = True) -> tuple[bytes, list[tuple], list[bytes]]:
    """What ``sender`` makes of ``stream``, pings ``between`` its fragments and a Close at its
    end."""
    data, expected, sent_pings = b"", [], []
    for (kind, parts), ping in stream:
        encoded = [part.encode() if kind == "text" else part for part in parts]
        for index, part in enumerate(encoded):
            data += sender.send(kind, part, index == len(encoded) - 1)
            if between or index == len(encoded) - 1:
                data += sender.ping(ping)
                sent_pings.append(ping)
        data += sender.pong(ping)
        expected.append((kind, b"".join(encoded)))
    if close is not None:
        code, reason = close
        data += sender.close(code, reason)
        expected.append(("close", 1005 if code is None else code, reason))
    return bytes(data), expected, sent_pings


@ORACLES
@ROLES
@examples(60)
@given(stream=_STREAMS, close=st.none() | _CLOSES, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_what_they_encode_we_decode(oracle, client, stream, close, cuts):
    data, expected, sent_pings = talk(oracle(not client), stream, close)
    for chunks in ([data], cut(data, [min(position, len(data)) for position in cuts])):
        ours = Ours(client)
        events = ours.receive(*chunks)
        assert messages(events) == expected
        theirs = oracle(not client)
        replies = theirs.receive(b"".join(ours.protocol.replies))
        assert [event[1] for event in replies if event[0] == "pong"] == sent_pings
        assert [e[:2] for e in replies if e[0] == "close"] == [
            e[:2] for e in expected if e[0] == "close"
        ]


@ORACLES
@ROLES
@examples(60)
@given(stream=_STREAMS, close=st.none() | _CLOSES, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_what_we_encode_they_decode(oracle, client, stream, close, cuts):
    data, expected, sent_pings = talk(Ours(client), stream, close)
    for chunks in ([data], cut(data, [min(position, len(data)) for position in cuts])):
        events = oracle(not client).receive(*chunks)
        assert messages(events) == expected
        assert pings(events) == sent_pings


@ROLES
@examples(50)
@given(
    stream=_STREAMS,
    close=st.none() | _CLOSES,
)
def test_a_server_encodes_byte_for_byte_as_they_do(client, stream, close):
    # A client's bytes differ by its masks; what they hide has the same length.
    ours = talk(Ours(client), stream, close)[0]
    for oracle in (Websockets, Wsproto):
        theirs = talk(oracle(client), stream, close)[0]
        assert len(ours) == len(theirs)
        if not client:
            assert ours == theirs


@ORACLES
@ROLES
@pytest.mark.parametrize("code", [None, *range(1000, 1004), *range(1007, 1015), 3000, 4999])
def test_close_codes_in_both_directions(oracle, client, code):
    reason = "" if code is None else "bye €"
    got = 1005 if code is None else code
    theirs = 1002 if oracle is Wsproto and code in UNKNOWN_TO_WSPROTO else got
    ours = Ours(client)
    assert ours.receive(bytes(oracle(not client).close(code, reason))) == [("close", got, reason)]
    assert verdict(oracle(not client).receive(*ours.protocol.replies)) == theirs
    if client or code != 1010:
        events = oracle(not client).receive(Ours(client).close(code, reason))
        assert verdict(events) == theirs
        assert events == [("close", got, reason)] or theirs != got


@ORACLES
@ROLES
@pytest.mark.parametrize("size", [0, 125, 126, 127, 65535, 65536, 200_000])
def test_lengths_in_both_directions(oracle, client, size):
    payload = bytes(i * 7 & 0xFF for i in range(size))
    data = bytes(oracle(not client).send("binary", payload))
    assert messages(Ours(client).receive(data)) == [("binary", payload)]
    data = Ours(client).send("binary", payload)
    assert messages(oracle(not client).receive(data)) == [("binary", payload)]


@ROLES
def test_fragments_are_the_same_frame_by_frame(client):
    sender = Websockets(not client)
    data = b""
    for index, part in enumerate([b"a\xe2", b"", b"\x82", b"\xacb", b""]):
        data += sender.send("text", part, index == 4)
    assert Ours(client).receive(data) == Wsproto(client).receive(data)
    assert Ours(client).receive(data) == [
        ("text", "a", False),
        ("text", "", False),
        ("text", "", False),
        ("text", "€b", False),
        ("text", "", True),
    ]


# -- what is wrong


def verdict(events: list[tuple]) -> int | None:
    """The code with which either side closed the connection; None: it is open."""
    return next((event[1] for event in events if event[0] == "close"), None)


def websockets_verdict(client: bool, data: bytes) -> int | None:
    """That of ``websockets`` with its user, since its core leaves checking UTF-8 to the user."""
    events = Websockets(client).receive(data)
    for kind, *rest in messages(events):
        if kind == "text":
            try:
                rest[0].decode()
            except UnicodeDecodeError:
                return 1007
    return verdict(events)


def wrap(opcode: int, payload: bytes, client: bool, **options) -> bytes:
    return frame(opcode, payload, mask=None if client else MASK, **options)


@ROLES
@pytest.mark.parametrize("context", ["fresh", "in text", "in binary"])
def test_every_first_byte_gets_the_verdict_that_they_give(client, context):
    before = {
        "fresh": b"",
        "in text": wrap(TEXT, b"a", client, fin=False),
        "in binary": wrap(BINARY, b"a", client, fin=False),
    }[context]
    for first in range(256):
        for payload in (b"", b"\x03\xe8", b"\x03\xe8ok", b"\x03\xec", b"x", b"y" * 125, b"z" * 126):
            for masked in (True, False):
                head = wire.frame(0, payload, mask=MASK if masked else None)[1:]
                data = before + bytes([first]) + head
                got = verdict(Ours(client).receive(data))
                about = (hex(first), payload[:8], masked)
                assert got == verdict(Wsproto(client).receive(data)), about
                theirs = websockets_verdict(client, data)
                if context != "fresh" and first == 0x88 and got not in (1002, None):
                    # websockets refuses a Close inside a fragmented message. Section 5.4: "Control
                    # frames MAY be injected in the middle of a fragmented message."
                    assert theirs == 1002, about
                elif got == 1007 and first < 0x80:
                    # The message is not over, and who uses websockets waits for its end.
                    assert theirs is None, about
                else:
                    assert got == theirs, about


@ROLES
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
@pytest.mark.parametrize(
    ("length", "length_bytes"), [(0, 2), (5, 2), (125, 2), (5, 8), (126, 8), (65535, 8)]
)
def test_a_length_that_is_not_the_shortest(client, opcode, length, length_bytes):
    data = wrap(opcode, b"x" * length, client, length_bytes=length_bytes)
    assert verdict(Ours(client).receive(data)) == 1002
    assert verdict(Wsproto(client).receive(data)) == 1002
    # Section 5.2: "the minimal number of bytes MUST be used"; websockets does not check it.
    assert websockets_verdict(client, data) == (1002 if opcode == PING and length > 125 else None)


@ROLES
def test_the_most_significant_bit_of_a_length(client):
    data = wrap(BINARY, b"x", client, length=1 << 63)
    assert verdict(Ours(client).receive(data)) == 1002
    assert verdict(Wsproto(client).receive(data)) == 1002
    # Section 5.2: "the most significant bit MUST be 0"; websockets would wait for 2**63 bytes.
    assert websockets_verdict(client, data) is None


@ROLES
def test_every_close_code_gets_the_verdict_that_they_give(client):
    for code in [*range(980, 1030), 1100, 1999, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535, 0]:
        data = close_frame(code, b"r", mask=None if client else MASK)
        got = verdict(Ours(client).receive(data))
        assert got in (code, 1002)
        assert got == websockets_verdict(client, data), code
        if code in UNKNOWN_TO_WSPROTO:
            assert (got, verdict(Wsproto(client).receive(data))) == (code, 1002)
        else:
            assert got == verdict(Wsproto(client).receive(data)), code


@ROLES
@pytest.mark.parametrize("payload", [b"", b"\x03", b"\x03\xe8", b"\x03\xe8\xff", b"\x03\xe8" * 62])
def test_close_payloads_get_the_verdict_that_they_give(client, payload):
    data = wrap(CLOSE, payload, client)
    got = verdict(Ours(client).receive(data))
    assert got == verdict(Wsproto(client).receive(data))
    assert got == websockets_verdict(client, data)


@ROLES
@pytest.mark.parametrize("payload", [*VALID_UTF8, *INVALID_UTF8])
def test_text_gets_the_verdict_that_they_give(client, payload):
    parts = [wrap(TEXT, payload[:1], client, fin=False), wrap(CONTINUATION, payload[1:], client)]
    for data in (wrap(TEXT, payload, client), b"".join(parts)):
        expected = None if payload in VALID_UTF8 else 1007
        assert verdict(Ours(client).receive(data)) == expected
        assert verdict(Ours(client).receive(*octets(data))) == expected
        assert verdict(Wsproto(client).receive(data)) == expected
        assert websockets_verdict(client, data) == expected


def test_a_surrogate_fails_on_its_second_byte_and_not_on_its_third():
    # Python's incremental decoder, which wsproto uses, waits for the third.
    data = wire.frame(TEXT, b"\xed\xa0", length=3)
    assert verdict(Ours(False).receive(data)) == 1007
    assert verdict(Wsproto(False).receive(data)) is None


@ROLES
def test_oversized_messages_get_1009_from_every_library_with_a_limit(client):
    side = Side.CLIENT if client else Side.SERVER
    for sizes in ([101], [1 << 20], [60, 41], [50, 50, 1]):
        ours = Connection(Config(max_message_size=100), client)
        theirs = WebsocketsProtocol(side, max_size=100)
        data = b""
        for index, size in enumerate(sizes):
            final = index == len(sizes) - 1
            data += wrap(CONTINUATION if index else BINARY, bytes(size), client, fin=final)
        drive(ours, data)
        theirs.receive_data(data)
        assert ours.close_code == theirs.close_sent.code == 1009
    ours = Connection(Config(max_message_size=100), client)
    theirs = WebsocketsProtocol(side, max_size=100)
    data = wrap(BINARY, bytes(60), client, fin=False) + wrap(CONTINUATION, bytes(40), client)
    drive(ours, data)
    theirs.receive_data(data)
    assert ours.close_code == 0
    assert theirs.close_sent is None


@st.composite
def damaged_streams(draw) -> tuple[bool, bytes]:
    client = draw(st.booleans())
    sender = Wsproto(not client) if draw(st.booleans()) else Ours(not client)
    data = bytearray(talk(sender, draw(_STREAMS), draw(_CLOSES))[0][:2000])
    for _ in range(draw(st.integers(1, 2))):
        if data:
            index = draw(st.integers(0, min(len(data) - 1, 40)))
            data[index] ^= 1 << draw(st.integers(0, 7))
    return client, bytes(data)


@examples(600)
@given(damaged_streams())
def test_damaged_streams_get_the_events_that_wsproto_gives(damaged):
    client, data = damaged
    ours = [event for event in Ours(client).receive(data)]
    theirs = [event for event in Wsproto(client).receive(data) if event[0] not in ("ping", "pong")]
    if ours and ours[-1][0] == "close" and ours[-1][1] in UNKNOWN_TO_WSPROTO:
        assert theirs[-1][1] == 1002
        return
    assert verdict(theirs) == verdict(ours) or _is_early(client, data, ours, theirs)
    # wsproto reports the pieces of an unfinished frame, and of a message that fails later; complete
    # messages are the same.
    whole = [event for event in messages(ours) if event[0] != "close"]
    assert [event for event in messages(theirs) if event[0] != "close"] == whole


def _is_early(client: bool, data: bytes, ours: list[tuple], theirs: list[tuple]) -> bool:
    """We refuse with the first byte that is wrong; wsproto once the header is there, or a code
    point. So it must come to the same once the missing bytes are there."""
    assert verdict(theirs) is None, (ours, theirs)
    later = Wsproto(client).receive(data + bytes(14))
    return verdict(later) == verdict(ours)


# -- permessage-deflate

AGREED = [
    Parameters(True, True),
    Parameters(False, False),
    Parameters(True, False, 15, 15),
    Parameters(False, True, 9, 9),
]
AGREEMENTS = pytest.mark.parametrize("agreed", AGREED, ids=str)


@ORACLES
@ROLES
@AGREEMENTS
@examples(25)
@given(stream=_STREAMS, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_what_they_compress_we_inflate(oracle, client, agreed, stream, cuts):
    data, expected, sent_pings = talk(oracle(not client, agreed), stream, (1000, ""))
    for chunks in ([data], cut(data, [min(position, len(data)) for position in cuts])):
        ours = Ours(client, agreed)
        assert messages(ours.receive(*chunks)) == expected
        replies = oracle(not client, agreed).receive(b"".join(ours.protocol.replies))
        assert [event[1] for event in replies if event[0] == "pong"] == sent_pings


@ORACLES
@ROLES
@AGREEMENTS
@examples(25)
@given(stream=_STREAMS, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_what_we_compress_they_inflate(oracle, client, agreed, stream, cuts):
    # wsproto forgets that a message is compressed when a ping comes between its fragments.
    between = oracle is not Wsproto
    data, expected, sent_pings = talk(Ours(client, agreed), stream, (1000, ""), between)
    for chunks in ([data], cut(data, [min(position, len(data)) for position in cuts])):
        events = oracle(not client, agreed).receive(*chunks)
        assert messages(events) == expected
        assert pings(events) == sent_pings


@pytest.mark.parametrize("server", [{}, {"server_max_window_bits": 10}, {"require": True}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deflate_takeover": True, "deflate_peer_takeover": True},
        {"deflate_window_bits": 10, "deflate_peer_window_bits": 11},
    ],
    ids=str,
)
def test_their_server_answers_our_offer_as_our_client_expects(options, server):
    if server == {"require": True}:
        server = {"client_max_window_bits": 12, "require_client_max_window_bits": True}
    config = Config(**options)
    theirs = ServerProtocol(extensions=[ServerPerMessageDeflateFactory(**server)])
    key = new_key()
    theirs.receive_data(client_request("example.com", "/", key, (), make_offer(config)))
    (request,) = theirs.events_received()
    theirs.send_response(theirs.accept(request))
    status, headers = _parse_response(b"".join(theirs.data_to_send()))
    _, agreed = check_response(status, headers, key, (), config)
    (extension,) = theirs.extensions
    assert agreed is not None
    assert extension.local_no_context_takeover == agreed.server_no_context_takeover
    assert extension.local_max_window_bits == (agreed.server_max_window_bits or 15)
    # What they allow us is more than we use, or just that.
    assert extension.remote_max_window_bits >= (agreed.client_max_window_bits or 15)
    assert agreed.client_no_context_takeover >= extension.remote_no_context_takeover


@pytest.mark.parametrize(
    "client",
    [
        {},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 8, "client_max_window_bits": 9},
        {"server_max_window_bits": 15, "client_max_window_bits": 15},
        {"client_max_window_bits": None},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deflate_takeover": True, "deflate_peer_takeover": True},
        {"deflate_window_bits": 10, "deflate_peer_window_bits": 11},
    ],
    ids=str,
)
def test_their_client_takes_our_answer_to_its_offer(options, client):
    theirs = ClientProtocol(
        parse_uri("ws://example.com/"), extensions=[ClientPerMessageDeflateFactory(**client)]
    )
    theirs.send_request(theirs.connect())
    offer = parse_request(environ_of(b"".join(theirs.data_to_send())))
    agreed = accept_offer(offer.extensions, Config(**options))
    theirs.receive_data(accept_response(offer, deflate=agreed))
    assert theirs.handshake_exc is None
    if agreed is None:  # a window that this client cannot limit
        assert (client, theirs.extensions) == ({"client_max_window_bits": None}, [])
        return
    (extension,) = theirs.extensions
    assert extension.remote_no_context_takeover == agreed.server_no_context_takeover
    assert extension.local_no_context_takeover == agreed.client_no_context_takeover
    assert extension.remote_max_window_bits == (agreed.server_max_window_bits or 15)
    assert extension.local_max_window_bits == (agreed.client_max_window_bits or 15)


# -- the opening handshake


def test_their_server_accepts_our_request_and_we_its_answer():
    for protocols in ([], ["chat"], ["superchat", "chat"]):
        key = new_key()
        server = ServerProtocol(subprotocols=["chat"] if protocols else None)
        server.receive_data(client_request("example.com", "/a?b=c", key, protocols))
        (request,) = server.events_received()
        assert request.path == "/a?b=c"
        assert request.headers["Host"] == "example.com"
        server.send_response(server.accept(request))
        assert server.state is WEBSOCKETS_OPEN
        answer = b"".join(server.data_to_send())
        status, headers = _parse_response(answer)
        chosen = "chat" if protocols else None
        assert check_response(status, headers, key, protocols) == (chosen, None)


@pytest.mark.parametrize("subprotocol", [None, "chat"])
def test_their_client_accepts_our_answer(subprotocol):
    client = ClientProtocol(parse_uri("ws://example.com/chat"), subprotocols=["superchat", "chat"])
    client.send_request(client.connect())
    offer = parse_request(environ_of(b"".join(client.data_to_send())))
    assert offer.protocols == ["superchat", "chat"]
    client.receive_data(accept_response(offer, subprotocol) + b"\x81\x02hi")
    assert client.handshake_exc is None
    assert client.state is WEBSOCKETS_OPEN
    assert client.subprotocol == subprotocol
    _, message = client.events_received()
    assert message.data == b"hi"


def test_their_client_refuses_an_answer_to_another_key():
    client = ClientProtocol(parse_uri("ws://example.com/"))
    client.send_request(client.connect())
    offer = parse_request(environ_of(wire.request()))
    client.receive_data(accept_response(offer))
    assert isinstance(client.handshake_exc, InvalidHandshake)


def test_wsproto_shakes_hands_with_us_in_both_roles():
    client = WSConnection(ConnectionType.CLIENT)
    data = client.send(
        wsproto_events.Request(host="example.com", target="/", subprotocols=["chat"])
    )
    client.receive_data(accept_response(parse_request(environ_of(data)), "chat"))
    (accepted,) = client.events()
    assert accepted.subprotocol == "chat"

    key = new_key()
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(client_request("example.com", "/x", key, ["chat"]))
    (request,) = server.events()
    assert (request.target, request.subprotocols) == ("/x", ["chat"])
    status, headers = _parse_response(
        server.send(wsproto_events.AcceptConnection(subprotocol="chat"))
    )
    assert check_response(status, headers, key, ["chat"]) == ("chat", None)


# (what differs from a good request, our status, that of websockets)
_REFUSALS = [
    ({}, None, None),
    ({"Connection": "keep-alive, upgrade"}, None, None),
    ({"Upgrade": "WebSocket"}, None, None),
    ({"Sec_WebSocket_Protocol": "a, b"}, None, None),
    ({"Sec_WebSocket_Protocol": ",a,,b"}, None, None),
    ({"Sec_WebSocket_Protocol": "a b"}, 400, 400),
    ({"Sec_WebSocket_Protocol": ""}, 400, 400),
    ({"Upgrade": None}, 426, 426),
    ({"Upgrade": "h2c"}, 426, 426),
    ({"Sec_WebSocket_Key": None}, 400, 400),
    ({"Sec_WebSocket_Key": "x"}, 400, 400),
    ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}, 400, 400),
    ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400, 400),
    ({"method": "POST"}, 405, 405),
    # The client asks for an upgrade, and something in between has eaten half of it.
    ({"Connection": None}, 400, 426),
    ({"Connection": "keep-alive"}, 400, 426),
    # Section 4.4: an answer to another version names the one supported, "such as 426".
    ({"Sec_WebSocket_Version": None}, 426, 400),
    ({"Sec_WebSocket_Version": "8"}, 426, 400),
    # Section 4.2.1: anything that does not match the description is a 400.
    ({"version": "1.0"}, 400, 505),
    # websockets leaves Host to HTTP, and duplicates to the application.
    ({"Host": None}, 400, None),
    ({"Sec_WebSocket_Protocol": "a, a"}, 400, None),
]


@pytest.mark.parametrize(("changes", "ours", "theirs"), _REFUSALS)
def test_refusals_of_the_handshake(changes, ours, theirs):
    data = wire.request(**changes)
    try:
        parse_request(environ_of(data))
        status = None
    except HandshakeError as error:
        status = error.status
    assert status == ours
    # Without subprotocols of its own, websockets does not look at the client's; with them, it
    # demands one.
    server = ServerProtocol(subprotocols=["a"] if "Sec_WebSocket_Protocol" in changes else None)
    server.receive_data(data)
    requests = server.events_received()
    if not requests:  # older releases refuse in their HTTP parser, without a status of their own
        assert theirs is not None and server.handshake_exc is not None
        return
    code = server.accept(requests[0]).status_code
    assert (None if code == 101 else code) == theirs


def _parse_response(data: bytes) -> tuple[int, dict[str, str]]:
    lines = bytes(data).split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:])
    return int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, value in pairs}
