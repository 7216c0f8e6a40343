"""The state machine of a connection: bytes in, fragments and replies out; both roles.

The peer's frames are built by hand (``wire``), and what we send is read by hand (``sansio``).
"""

from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenws.config import Config
from greenws.exceptions import ConnectionClosed, ProtocolError
from greenws.protocol.connection import CLOSED, CLOSING, OPEN, Connection

from ..support.examples import examples
from ..support.sansio import (
    INVALID_UTF8,
    NOTHING,
    VALID_UTF8,
    cut,
    drive,
    first_bad,
    lend,
    octets,
    pull,
    read_frame,
    read_frames,
)
from ..support.wire import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, close_frame, frame

INVALID_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
VALID_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]


class End:
    """A Connection under test, and frames as its peer sends them."""

    def __init__(self, client: bool, **options) -> None:
        self.client = client
        self.mask = None if client else MASK
        self.protocol = Connection(Config(**options), client)

    def frame(self, opcode: int, payload: bytes = b"", **options) -> bytes:
        return frame(opcode, payload, mask=self.mask, **options)

    def close_frame(self, code: int | None = 1000, reason: bytes = b"") -> bytes:
        return close_frame(code, reason, mask=self.mask)

    def drive(self, *chunks: bytes) -> list:
        return drive(self.protocol, *chunks)

    def read(self, data: bytes) -> list[tuple[bool, int, bytes]]:
        """Frames that this end has sent, with the masks that its role demands."""
        frames = []
        while data:
            fin, opcode, payload, mask, data = read_frame(data)
            assert (mask is not None) == self.client, "masking"
            frames.append((fin, opcode, payload))
        return frames

    def replies(self) -> list[tuple[int, bytes]]:
        frames = self.read(b"".join(self.protocol.replies))
        self.protocol.replies.clear()
        assert all(fin for fin, _, _ in frames)
        return [(opcode, payload) for _, opcode, payload in frames]

    def failed(self, code: int) -> str:
        """Checks that the connection was failed with ``code``, and returns the reason given."""
        assert self.protocol.state == CLOSED
        assert self.protocol.close_code == code
        *_, (opcode, payload) = self.replies()
        assert opcode == CLOSE
        assert payload[:2] == code.to_bytes(2, "big")
        reason = payload[2:].decode()
        assert reason and len(payload) <= 125
        assert reason == self.protocol.close_reason
        return reason


@pytest.fixture(params=[False, True], ids=["server", "client"])
def client(request) -> bool:
    return request.param


@pytest.fixture
def end(client) -> End:
    return End(client)


def body(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


# -- data


def test_a_new_connection_is_open_and_has_nothing(end):
    protocol = end.protocol
    assert (protocol.state, protocol.close_code, protocol.close_reason) == (OPEN, 0, "")
    assert protocol.next_event() == NOTHING
    assert protocol.next_event() == NOTHING
    assert protocol.replies == []
    assert not protocol.has_frame()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_messages_at_every_boundary_of_the_length(end, size):
    data = os.urandom(size)
    text = "x" * size
    stream = end.frame(BINARY, data) + end.frame(TEXT, text.encode())
    expected = [(BINARY, data, True), (TEXT, text, True)]
    assert end.drive(stream) == expected
    assert end.drive(stream[:1], stream[1:]) == expected
    assert end.drive(*cut(stream, range(0, len(stream), 1 + len(stream) // 300))) == expected
    assert end.replies() == []


def test_fragments_come_one_by_one_as_they_arrive(end):
    frames = [
        end.frame(TEXT, b"a", fin=False),
        end.frame(CONTINUATION, b"", fin=False),
        end.frame(CONTINUATION, b"b", fin=False),
        end.frame(CONTINUATION, b"c"),
        end.frame(BINARY, b"1", fin=False),
        end.frame(CONTINUATION, b"2"),
    ]
    expected = [
        (TEXT, "a", False),
        (CONTINUATION, "", False),
        (CONTINUATION, "b", False),
        (CONTINUATION, "c", True),
        (BINARY, b"1", False),
        (CONTINUATION, b"2", True),
    ]
    for data, event in zip(frames, expected, strict=True):
        assert end.drive(data) == [event]
    assert end.drive(b"".join(frames)) == expected
    assert end.drive(*octets(b"".join(frames))) == expected


def test_events_are_pulled_one_at_a_time(end):
    lend(end.protocol, end.frame(TEXT, b"a") + end.frame(PING, b"p") + end.frame(TEXT, b"b"))
    assert end.protocol.next_event() == TEXT
    assert end.protocol.data == "a"
    assert end.replies() == []  # the ping was not parsed yet
    assert end.protocol.next_event() == TEXT
    assert end.protocol.data == "b"
    assert end.replies() == [(PONG, b"p")]
    assert end.protocol.next_event() == NOTHING


def test_bytes_fed_before_earlier_ones_were_pulled_keep_their_order(end):
    expected = [(BINARY, bytes([i]) * i, True) for i in range(40)]
    stream = b"".join(end.frame(BINARY, data) for _, data, _ in expected)
    events, lent = [], []
    for index, position in enumerate(range(0, len(stream), 11)):
        lent.append(lend(end.protocol, stream[position : position + 11]))
        if index % 3 == 0:  # one event, and the buffers are their lender's again
            event = end.protocol.next_event()
            end.protocol.keep()
            for buffer in lent:
                buffer[:] = b"\xee" * len(buffer)
            lent = []
            if event != NOTHING:
                events.append((event, end.protocol.data, end.protocol.final))
    assert events + list(pull(end.protocol)) == expected


def test_every_cut_of_a_stream_gives_the_same_events(client):
    frame_of = End(client).frame
    stream = (
        frame_of(TEXT, "a€".encode()[:-1], fin=False)
        + frame_of(PING, b"p")
        + frame_of(CONTINUATION, "€".encode()[-1:] + b"b")
        + frame_of(BINARY, b"\xff")
        + End(client).close_frame(4000, b"bye")
    )
    expected = [
        (TEXT, "a", False),
        (CONTINUATION, "€b", True),
        (BINARY, b"\xff", True),
        (CLOSE, 4000, "bye"),
    ]
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1, 5):
            end = End(client)
            assert end.drive(*cut(stream, [first, second])) == expected
            assert end.replies() == [(PONG, b"p"), (CLOSE, body(4000, b"bye"))]


def test_has_frame_is_true_only_if_another_whole_frame_was_fed(end):
    first, second = end.frame(TEXT, b"a"), end.frame(TEXT, b"b")
    lend(end.protocol, first + second)
    assert end.protocol.has_frame()
    assert end.protocol.next_event() == TEXT
    assert end.protocol.has_frame()
    assert end.protocol.next_event() == TEXT
    assert not end.protocol.has_frame()
    lend(end.protocol, first + second[:-1])
    assert end.protocol.next_event() == TEXT
    assert not end.protocol.has_frame()


@pytest.mark.parametrize("length", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_has_frame_ignores_errors_that_next_event_reports(end, length):
    lend(end.protocol, end.frame(TEXT, b"a") + end.frame(BINARY, b"abc", length=length))
    assert end.protocol.next_event() == TEXT
    assert not end.protocol.has_frame()
    assert end.protocol.next_event() == CLOSE
    end.failed(1009 if length < 1 << 63 else 1002)


@pytest.mark.parametrize("limit", [(1 << 63) - 1, 1 << 63, 1 << 64])
def test_a_limit_of_any_size_holds_or_is_refused_when_it_is_set(client, limit):
    for name in ("max_message_size", "max_fragments"):
        try:
            options = Config(**{name: limit})
        except ValueError:
            continue
        events = drive(Connection(options, client), End(client).frame(TEXT, b"a"))
        assert events == [(TEXT, "a", True)]


def test_has_frame_is_false_once_the_connection_is_over(end):
    lend(end.protocol, end.close_frame() + end.frame(TEXT, b"ignored"))
    assert end.protocol.next_event() == CLOSE
    assert not end.protocol.has_frame()
    lend(end.protocol, end.frame(TEXT, b"ignored"))
    assert not end.protocol.has_frame()
    other = End(end.client)
    lend(other.protocol, other.frame(TEXT, b"abc", length=100)[:-1])
    assert other.protocol.next_event() == NOTHING
    other.protocol.feed_eof()
    assert not other.protocol.has_frame()


# -- UTF-8 and limits, through the whole of it


@pytest.mark.parametrize("data", VALID_UTF8)
def test_valid_text_is_delivered_byte_by_byte(end, data):
    assert end.drive(*octets(end.frame(TEXT, data))) == [(TEXT, data.decode(), True)]
    split = [end.frame(TEXT, data[: len(data) // 2], fin=False)]
    split.append(end.frame(CONTINUATION, data[len(data) // 2 :]))
    assert "".join(e[1] for e in end.drive(b"".join(split))) == data.decode()


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_text_closes_with_1007(client, data):
    for chunks in (lambda stream: [stream], octets):
        end = End(client)
        assert end.drive(*chunks(end.frame(TEXT, data) + end.frame(TEXT, b"x")))[-1][0] == CLOSE
        assert "UTF-8" in end.failed(1007)


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_the_first_bad_byte_closes_before_its_frame_is_complete(client, data):
    end = End(client)
    bad = first_bad(data)
    head = end.frame(TEXT, b"good" + data, length=100_000)
    header = len(head) - len(data) - 4
    good = header + 4 + min(bad, len(data))
    assert end.drive(head[:good]) == []
    assert end.protocol.state == OPEN
    if bad < len(data):
        assert end.drive(head[good : good + 1])[0][:2] == (CLOSE, 1007)
        end.failed(1007)


def test_binary_is_not_checked(end):
    data = b"".join(INVALID_UTF8)
    assert end.drive(*octets(end.frame(BINARY, data))) == [(BINARY, data, True)]


def test_an_announced_size_above_the_limit_closes_before_any_payload(client):
    for opcode in (TEXT, BINARY):
        end = End(client, max_message_size=1000)
        header = end.frame(opcode, b"", length=1001)
        assert end.drive(header[:-1]) == []
        assert end.drive(header[-1:])[0][:2] == (CLOSE, 1009)
        assert "max_message_size (1000 bytes)" in end.failed(1009)


def test_the_largest_length_after_a_fragment_does_not_pass_the_limit(client):
    end = End(client, max_message_size=1000)
    stream = end.frame(BINARY, b"abc", fin=False)
    stream += end.frame(CONTINUATION, b"", length=(1 << 63) - 1)
    assert [event[:2] for event in end.drive(stream)] == [(BINARY, b"abc"), (CLOSE, 1009)]


def test_a_message_of_the_size_of_the_limit_is_delivered(client):
    end = End(client, max_message_size=1000)
    assert end.drive(end.frame(BINARY, bytes(1000))) == [(BINARY, bytes(1000), True)]


def test_fragments_beyond_the_limit_close_with_1009(client):
    end = End(client, max_message_size=1000)
    stream = end.frame(BINARY, bytes(600), fin=False) + end.frame(PING)
    assert end.drive(stream) == [(BINARY, bytes(600), False)]
    assert end.replies() == [(PONG, b"")]
    assert end.drive(end.frame(CONTINUATION, b"", length=401))[0][:2] == (CLOSE, 1009)
    end.failed(1009)


def test_empty_fragments_beyond_the_limit_close_with_1008(client):
    end = End(client, max_fragments=3)
    stream = end.frame(TEXT, fin=False) + 2 * end.frame(CONTINUATION, fin=False)
    assert len(end.drive(stream)) == 3
    assert end.drive(end.frame(CONTINUATION))[0][:2] == (CLOSE, 1008)
    assert "max_fragments (3)" in end.failed(1008)


def test_control_frames_count_for_no_limit(client):
    end = End(client, max_fragments=2, max_message_size=10)
    pings = end.frame(PING, bytes(125)) * 5
    stream = end.frame(TEXT, b"a", fin=False) + pings + end.frame(CONTINUATION, b"b") + pings
    assert end.drive(stream) == [(TEXT, "a", False), (CONTINUATION, "b", True)]
    assert end.replies() == [(PONG, bytes(125))] * 10


def test_without_limits_an_announced_length_allocates_nothing(client):
    end = End(client, max_message_size=None)
    stream = end.frame(BINARY, b"x" * 100, length=(1 << 63) - 1)
    tracemalloc.start()
    try:
        assert end.drive(stream) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000
    assert end.protocol.state == OPEN


# -- pings and pongs


@pytest.mark.parametrize("payload", [b"", b"p", b"\x00\xff\xfe", bytes(range(125))])
def test_a_ping_is_answered_with_its_payload(end, payload):
    assert end.drive(end.frame(PING, payload)) == []
    assert end.replies() == [(PONG, payload)]
    assert end.drive(*octets(end.frame(PING, payload))) == []
    assert end.replies() == [(PONG, payload)]


def test_pings_are_answered_in_order_and_between_fragments(end):
    stream = (
        end.frame(PING, b"1")
        + end.frame(TEXT, b"a", fin=False)
        + end.frame(PING, b"2")
        + end.frame(PING, b"3")
        + end.frame(CONTINUATION, b"b")
        + end.frame(PING, b"4")
    )
    assert end.drive(stream) == [(TEXT, "a", False), (CONTINUATION, "b", True)]
    assert end.replies() == [(PONG, b"1"), (PONG, b"2"), (PONG, b"3"), (PONG, b"4")]


def test_a_ping_between_the_bytes_of_a_code_point_does_not_disturb_it(end):
    euro = "€".encode()
    stream = (
        end.frame(TEXT, euro[:1], fin=False)
        + end.frame(PING, b"\xff")
        + end.frame(CONTINUATION, euro[1:2], fin=False)
        + end.frame(PONG, b"\xff")
        + end.frame(CONTINUATION, euro[2:])
    )
    events = [(TEXT, "", False), (CONTINUATION, "", False), (CONTINUATION, "€", True)]
    assert end.drive(stream) == events
    assert end.replies() == [(PONG, b"\xff")]


def test_an_unsolicited_pong_is_no_event_and_gets_no_answer(end):
    assert end.drive(end.frame(PONG), end.frame(PONG, b"x"), end.frame(TEXT, b"a")) == [
        (TEXT, "a", True)
    ]
    assert end.replies() == []


def test_a_ping_is_sent_and_its_pong_is_for_the_reader(end):
    ping, data = end.protocol.ping(b"payload", True)
    assert end.read(data) == [(True, PING, b"payload")]
    assert not ping.answered
    assert end.drive(end.frame(PONG, b"payload")) == [(PONG, b"payload", True)]
    assert ping.answered
    assert end.drive(end.frame(PONG, b"payload")) == []  # the second pong is unsolicited


def test_a_pong_for_no_reader_is_recorded_but_not_delivered(end):
    ping, _ = end.protocol.ping(b"keepalive", False)
    assert end.drive(end.frame(PONG, b"keepalive")) == []
    assert ping.answered


def test_a_pong_with_another_payload_answers_nothing(end):
    ping, _ = end.protocol.ping(b"payload", True)
    for payload in (b"", b"payloa", b"payload!", b"PAYLOAD"):
        assert end.drive(end.frame(PONG, payload)) == []
    assert not ping.answered


def test_a_later_pong_settles_the_pings_before_it(end):
    pings = [end.protocol.ping(payload, True)[0] for payload in (b"1", b"2", b"3")]
    assert end.drive(end.frame(PONG, b"2")) == [(PONG, b"2", True)]
    assert [ping.answered for ping in pings] == [True, True, False]
    assert end.drive(end.frame(PONG, b"1")) == []
    assert end.drive(end.frame(PONG, b"3")) == [(PONG, b"3", True)]
    assert pings[2].answered


def test_the_reader_gets_a_pong_only_to_a_ping_that_it_wanted(end):
    wanted, _ = end.protocol.ping(b"mine", True)
    unwanted, _ = end.protocol.ping(b"keepalive", False)
    assert end.drive(end.frame(PONG, b"mine")) == [(PONG, b"mine", True)]
    assert (wanted.answered, unwanted.answered) == (True, False)
    assert end.drive(end.frame(PONG, b"keepalive")) == []
    assert unwanted.answered


def test_pings_with_the_same_payload_are_answered_one_by_one(end):
    first, second = end.protocol.ping(b"", True)[0], end.protocol.ping(b"", True)[0]
    assert end.drive(end.frame(PONG)) == [(PONG, b"", True)]
    assert (first.answered, second.answered) == (True, False)
    assert end.drive(end.frame(PONG)) == [(PONG, b"", True)]
    assert second.answered
    assert end.drive(end.frame(PONG)) == []


def test_pongs_come_between_fragments_and_change_nothing_about_them(end):
    end.protocol.ping(b"p", True)
    stream = end.frame(TEXT, b"a", fin=False) + end.frame(PONG, b"p") + end.frame(CONTINUATION)
    assert end.drive(stream) == [(TEXT, "a", False), (PONG, b"p", True), (CONTINUATION, "", True)]


def test_the_record_of_unanswered_pings_is_bounded(end):
    pings = [end.protocol.ping(i.to_bytes(2, "big"), True)[0] for i in range(1000)]
    assert end.drive(end.frame(PONG, b"\0\0")) == []
    assert end.drive(end.frame(PONG, (999).to_bytes(2, "big"))) == [
        (PONG, (999).to_bytes(2, "big"), True)
    ]
    assert pings[999].answered and not pings[0].answered
    assert 100 < sum(ping.answered for ping in pings) < 1000


def test_a_pong_may_be_sent_unasked(end):
    assert end.read(end.protocol.pong(b"hello")) == [(True, PONG, b"hello")]


@pytest.mark.parametrize("call", [lambda p, b: p.ping(b, True)[1], lambda p, b: p.pong(b)])
def test_control_payloads_hold_up_to_125_bytes(end, call):
    assert end.read(call(end.protocol, bytes(125)))[0][2] == bytes(125)
    with pytest.raises(ValueError, match="125 bytes, not 126"):
        call(end.protocol, bytes(126))


def test_a_ping_that_was_refused_leaves_no_record(end):
    with pytest.raises(ValueError):
        end.protocol.ping(bytes(126), True)
    ping, _ = end.protocol.ping(b"", True)
    end.drive(end.frame(PONG, b""))
    assert ping.answered


# -- the peer closes


@pytest.mark.parametrize("code", VALID_CODES)
def test_a_close_is_answered_with_its_code_and_reason(end, code):
    assert end.drive(end.close_frame(code, b"the reason")) == [(CLOSE, code, "the reason")]
    assert end.replies() == [(CLOSE, body(code, b"the reason"))]
    assert end.protocol.state == CLOSED


def test_an_empty_close_is_1005_and_gets_an_empty_answer(end):
    assert end.drive(end.close_frame(None)) == [(CLOSE, 1005, "")]
    assert end.replies() == [(CLOSE, b"")]


@pytest.mark.parametrize("code", INVALID_CODES)
def test_a_code_that_may_not_be_sent_is_1002(end, code):
    assert end.drive(end.close_frame(code, b"x"))[0][:2] == (CLOSE, 1002)
    assert str(code) in end.failed(1002)


def test_every_close_code_is_judged(client):
    valid = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    taken = set()
    for code in [*range(900, 5100), *range(0, 65536, 251)]:
        end = End(client)
        ((_, got, _),) = end.drive(end.close_frame(code))
        assert got == code or got == 1002
        if not end.protocol.close_reason:
            taken.add(code)
    assert taken == valid


@pytest.mark.parametrize("payload", [b"\x03", b"\x00", b"\xff"])
def test_a_close_of_one_byte_is_1002(end, payload):
    assert end.drive(end.frame(CLOSE, payload))[0][:2] == (CLOSE, 1002)
    assert "2 bytes" in end.failed(1002)


@pytest.mark.parametrize("reason", INVALID_UTF8)
def test_a_reason_that_is_not_utf8_is_1007(end, reason):
    assert end.drive(end.close_frame(1000, reason))[0][:2] == (CLOSE, 1007)
    end.failed(1007)


@pytest.mark.parametrize("reason", VALID_UTF8)
def test_any_utf8_is_a_reason(end, reason):
    assert end.drive(*octets(end.close_frame(1000, reason))) == [(CLOSE, 1000, reason.decode())]


def test_a_reason_of_123_bytes_is_taken_and_sent_back(end):
    reason = "é" * 61 + "x"
    assert end.drive(end.close_frame(1001, reason.encode())) == [(CLOSE, 1001, reason)]
    assert end.replies() == [(CLOSE, body(1001, reason.encode()))]


def test_a_close_in_the_middle_of_a_message_is_a_close(end):
    # Section 5.4: control frames may be injected in the middle of a fragmented message.
    stream = end.frame(TEXT, b"a", fin=False) + end.close_frame(1001)
    assert end.drive(stream) == [(TEXT, "a", False), (CLOSE, 1001, "")]
    assert end.replies() == [(CLOSE, body(1001))]


def test_what_follows_a_close_is_ignored(end):
    behind = end.frame(TEXT, b"b") + end.frame(PING, b"p") + b"\xff\xff\xff" + end.close_frame(4000)
    stream = end.frame(TEXT, b"a") + end.close_frame(1001, b"bye") + behind
    assert end.drive(stream) == [(TEXT, "a", True), (CLOSE, 1001, "bye")]
    assert end.replies() == [(CLOSE, body(1001, b"bye"))]
    for chunk in (behind, *octets(behind)):
        assert end.drive(chunk) == [(CLOSE, 1001, "bye")]
    end.protocol.feed_eof()
    assert end.drive(b"") == [(CLOSE, 1001, "bye")]
    assert end.replies() == []


def test_the_end_is_reported_on_every_pull(end):
    end.drive(end.close_frame(1001))
    assert [end.protocol.next_event() for _ in range(3)] == [CLOSE] * 3


def test_answers_keep_the_order_of_the_frames_they_answer(end):
    stream = end.frame(PING, b"1") + end.frame(PING, b"2") + end.close_frame(1000)
    end.drive(stream)
    assert end.replies() == [(PONG, b"1"), (PONG, b"2"), (CLOSE, body(1000))]


# -- the peer breaks the protocol

_VIOLATIONS = {
    "reserved bit": lambda end: end.frame(TEXT, b"x", rsv=4),
    "reserved opcode": lambda end: end.frame(3, b"x"),
    "reserved control opcode": lambda end: end.frame(11),
    "fragmented ping": lambda end: end.frame(PING, fin=False),
    "large ping": lambda end: end.frame(PING, bytes(126)),
    "large close": lambda end: end.frame(CLOSE, body(1000) + b"x" * 124),
    "continuation of nothing": lambda end: end.frame(CONTINUATION, b"x"),
    "open continuation of nothing": lambda end: end.frame(CONTINUATION, b"x", fin=False),
    "message in a message": lambda end: end.frame(TEXT, b"x", fin=False) + end.frame(TEXT, b"y"),
    "length not minimal": lambda end: end.frame(BINARY, b"x", length_bytes=2),
    "length not minimal, 64 bits": lambda end: end.frame(BINARY, b"x", length_bytes=8),
    "most significant bit": lambda end: end.frame(BINARY, b"x", length=1 << 63),
    "wrong masking": lambda end: frame(TEXT, b"x", mask=MASK if end.client else None),
    "http": lambda end: b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("violation", _VIOLATIONS.values(), ids=_VIOLATIONS)
@pytest.mark.parametrize("chunks", [lambda s: [s], octets], ids=["whole", "bytes"])
def test_a_violation_closes_with_1002_after_earlier_events(end, violation, chunks):
    before = end.frame(TEXT, b"a") + end.frame(PING, b"p") + end.frame(BINARY, b"b")
    events = end.drive(*chunks(before + violation(end) + end.frame(TEXT, b"after")))
    assert events[:2] == [(TEXT, "a", True), (BINARY, b"b", True)]
    assert events[-1][:2] == (CLOSE, 1002)
    assert not any("after" in event[1:] for event in events)
    assert end.protocol.replies[0] == frame(PONG, b"p", mask=None) or end.client
    assert read_frames(end.protocol.replies[0]) == [(True, PONG, b"p")]
    assert len(end.protocol.replies) == 2
    end.failed(1002)
    assert end.drive(end.frame(TEXT, b"more"))[0][0] == CLOSE
    assert end.replies() == []


def test_the_reason_of_a_failure_fits_into_a_control_frame(end):
    end.protocol._fail(ProtocolError("a" + "€" * 100))
    ((opcode, payload),) = end.replies()
    assert opcode == CLOSE
    assert payload == body(1002) + ("a" + "€" * 40).encode()


# -- the stream ends


def test_the_end_of_the_stream_without_a_close_is_1006(end):
    end.drive(end.frame(TEXT, b"a"))
    end.protocol.feed_eof()
    assert list(pull(end.protocol)) == [(CLOSE, 1006, "")]
    assert (end.protocol.state, end.protocol.close_code) == (CLOSED, 1006)
    assert end.replies() == []  # the peer has gone


def test_the_end_of_the_stream_in_the_middle_of_a_frame_is_1006(client):
    stream = End(client).frame(TEXT, b"abc")
    for size in range(len(stream)):
        end = End(client)
        end.drive(stream[:size])
        end.protocol.feed_eof()
        assert list(pull(end.protocol)) == [(CLOSE, 1006, "")]


def test_the_end_of_the_stream_after_our_close_is_1006(end):
    end.protocol.close(1000, "")
    end.protocol.feed_eof()
    assert list(pull(end.protocol)) == [(CLOSE, 1006, "")]


def test_the_end_of_the_stream_after_the_peers_close_changes_nothing(end):
    end.drive(end.close_frame(1001, b"bye"))
    end.protocol.feed_eof()
    assert list(pull(end.protocol)) == [(CLOSE, 1001, "bye")]


def test_what_arrived_before_the_end_of_the_stream_is_delivered(end):
    lend(end.protocol, end.frame(TEXT, b"a") + end.frame(TEXT, b"b"))
    assert end.protocol.next_event() == TEXT
    end.protocol.feed_eof()  # as a send does, which looks at the input
    assert list(pull(end.protocol)) == [(TEXT, "b", True), (CLOSE, 1006, "")]


def test_a_close_that_arrived_before_the_end_of_the_stream_counts(end):
    lend(end.protocol, end.frame(TEXT, b"a") + end.close_frame(1000, b"done"))
    assert end.protocol.next_event() == TEXT
    end.protocol.feed_eof()
    assert list(pull(end.protocol)) == [(CLOSE, 1000, "done")]


def test_nothing_is_sent_after_the_end_of_the_stream(end):
    lend(end.protocol, end.frame(TEXT, b"a"))
    end.protocol.feed_eof()
    with pytest.raises(ConnectionClosed) as caught:
        end.protocol.begin_message(TEXT, True)
    assert caught.value.code == 1006
    assert list(pull(end.protocol)) == [(TEXT, "a", True), (CLOSE, 1006, "")]


# -- we close


@pytest.mark.parametrize("code", [c for c in VALID_CODES if c != 1010])
def test_our_close_carries_code_and_reason(end, code):
    assert end.read(end.protocol.close(code, "bye €")) == [
        (True, CLOSE, body(code, "bye €".encode()))
    ]
    assert end.protocol.state == CLOSING


def test_our_close_without_a_code_is_empty(end):
    assert end.read(end.protocol.close(1005, "")) == [(True, CLOSE, b"")]
    assert end.protocol.state == CLOSING


@pytest.mark.parametrize("code", [c for c in INVALID_CODES if c != 1005] + [-1, 1 << 20])
def test_a_code_that_may_not_be_sent_is_a_value_error(end, code):
    with pytest.raises(ValueError, match=str(code)):
        end.protocol.close(code, "")
    assert end.protocol.state == OPEN
    assert end.read(end.protocol.close(1000, "")) == [(True, CLOSE, body(1000))]


def test_only_a_client_may_miss_an_extension(end):
    if end.client:
        assert end.read(end.protocol.close(1010, "")) == [(True, CLOSE, body(1010))]
    else:
        with pytest.raises(ValueError, match="1010"):
            end.protocol.close(1010, "")


def test_a_reason_needs_a_code(end):
    with pytest.raises(ValueError, match="1005"):
        end.protocol.close(1005, "why")
    assert end.protocol.state == OPEN


@pytest.mark.parametrize("reason", ["x" * 123, "é" * 61, "€" * 41])
def test_a_reason_holds_up_to_123_bytes(end, reason):
    ((_, _, payload),) = end.read(end.protocol.close(1000, reason))
    assert payload[2:] == reason.encode()
    assert len(payload) <= 125


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "€" * 42, "\ud800"])
def test_a_reason_too_long_or_not_unicode_is_a_value_error(end, reason):
    with pytest.raises(ValueError):
        end.protocol.close(1000, reason)
    assert end.protocol.state == OPEN


def test_the_peers_answer_ends_the_closing_handshake(end):
    end.protocol.close(1001, "bye")
    assert end.drive(end.close_frame(1001)) == [(CLOSE, 1001, "")]
    assert end.replies() == []  # a Close is not answered twice
    assert end.protocol.state == CLOSED


def test_the_code_of_the_end_is_the_peers(end):
    end.protocol.close(1000, "")
    assert end.drive(end.close_frame(4001, b"me too")) == [(CLOSE, 4001, "me too")]


def test_after_our_close_messages_arrive_and_pings_are_not_answered(end):
    ping, _ = end.protocol.ping(b"p", True)
    end.protocol.close(1000, "")
    stream = end.frame(TEXT, b"a") + end.frame(PING, b"x") + end.frame(PONG, b"p")
    assert end.drive(stream) == [(TEXT, "a", True), (PONG, b"p", True)]
    assert ping.answered
    assert end.replies() == []
    assert end.protocol.state == CLOSING


def test_a_violation_after_our_close_sends_no_second_close(end):
    end.protocol.close(1000, "")
    assert end.drive(end.frame(3))[0][:2] == (CLOSE, 1002)
    assert end.replies() == []


def test_a_second_close_sends_nothing(end):
    end.protocol.close(1000, "")
    assert end.protocol.close(1001, "again") == b""
    end.drive(end.close_frame(1000))
    assert end.protocol.close(1001, "again") == b""
    assert end.protocol.close_code == 1000


def test_an_invalid_close_is_reported_even_after_ours(end):
    end.drive(end.close_frame(1000))
    with pytest.raises(ValueError):
        end.protocol.close(1006, "")


# -- sending after a Close

_SENDS = {
    "message": lambda p: p.begin_message(TEXT, True),
    "fragment": lambda p: p.begin_message(BINARY, False),
    "ping": lambda p: p.ping(b"", True),
    "pong": lambda p: p.pong(b""),
    "ping too long": lambda p: p.ping(bytes(126), False),
}


@pytest.mark.parametrize("send", _SENDS.values(), ids=_SENDS)
def test_nothing_is_sent_after_our_close(end, send):
    end.protocol.close(4001, "mine")
    with pytest.raises(ConnectionClosed) as caught:
        send(end.protocol)
    assert (caught.value.code, caught.value.reason) == (4001, "mine")


@pytest.mark.parametrize("send", _SENDS.values(), ids=_SENDS)
def test_nothing_is_sent_after_the_peers_close(end, send):
    end.drive(end.close_frame(4000, b"theirs"))
    with pytest.raises(ConnectionClosed) as caught:
        send(end.protocol)
    assert (caught.value.code, caught.value.reason) == (4000, "theirs")


@pytest.mark.parametrize("send", _SENDS.values(), ids=_SENDS)
def test_nothing_is_sent_after_a_failure_or_the_end(client, send):
    end = End(client)
    end.drive(end.frame(TEXT, b"\xff"))
    with pytest.raises(ConnectionClosed) as caught:
        send(end.protocol)
    assert caught.value.code == 1007
    assert "UTF-8" in caught.value.reason
    end = End(client)
    end.protocol.feed_eof()
    with pytest.raises(ConnectionClosed) as caught:
        send(end.protocol)
    assert (caught.value.code, caught.value.reason) == (1006, "")


def test_a_send_after_our_empty_close_reports_1005(end):
    end.protocol.close(1005, "")
    assert end.protocol.closed_error().code == 1005


# -- sending


def test_a_message_in_one_frame(end):
    protocol = end.protocol
    for opcode, payload in ((TEXT, "häh".encode()), (BINARY, b"\x00\xff"), (TEXT, b"")):
        assert protocol.begin_message(opcode, True) == opcode
        assert protocol.sending == 0
        assert end.read(protocol.encode(opcode, True, payload)) == [(True, opcode, payload)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_in_fragments(end, opcode):
    protocol = end.protocol
    assert protocol.begin_message(opcode, False) == opcode
    assert protocol.sending == opcode
    assert protocol.begin_message(opcode, False) == CONTINUATION
    assert protocol.begin_message(opcode, True) == CONTINUATION
    assert protocol.sending == 0
    assert protocol.begin_message(opcode, True) == opcode


def test_a_message_of_the_other_type_may_not_come_between(end):
    protocol = end.protocol
    protocol.begin_message(TEXT, False)
    for final in (True, False):
        with pytest.raises(RuntimeError, match="final=True"):
            protocol.begin_message(BINARY, final)
    assert protocol.begin_message(TEXT, True) == CONTINUATION
    assert protocol.begin_message(BINARY, False) == BINARY


def test_control_frames_may_be_sent_between_fragments(end):
    protocol = end.protocol
    protocol.begin_message(TEXT, False)
    assert end.read(protocol.ping(b"p", False)[1]) == [(True, PING, b"p")]
    assert end.read(protocol.pong(b"q")) == [(True, PONG, b"q")]
    end.drive(end.frame(PING, b"r"))
    assert end.replies() == [(PONG, b"r")]
    assert protocol.begin_message(TEXT, True) == CONTINUATION


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_encoded_messages_at_every_boundary_of_the_length(end, size):
    payload = os.urandom(size)
    for data in (payload, memoryview(payload)):
        encoded = end.protocol.encode(BINARY, False, data)
        assert type(encoded) is bytes
        assert end.read(encoded) == [(False, BINARY, payload)]


def test_a_large_payload_is_sent_apart_from_its_header():
    payload = os.urandom(70_000)
    header, rest = Connection(Config()).divide(BINARY, True, payload)
    assert rest is payload
    assert read_frames(header + rest) == [(True, BINARY, payload)]
    header, masked = Connection(Config(), client=True).divide(BINARY, True, memoryview(payload))
    assert masked != payload and read_frames(header + masked) == [(True, BINARY, payload)]


def test_a_client_masks_every_frame_with_a_fresh_mask():
    end = End(True)
    protocol = end.protocol
    frames = [protocol.encode(TEXT, True, b"hello") for _ in range(20)]
    frames += [protocol.ping(b"hello", False)[1] for _ in range(20)]
    frames += [protocol.pong(b"hello") for _ in range(20)]
    end.drive(end.frame(PING, b"hello") * 20)
    frames += protocol.replies
    frames.append(protocol.close(1000, ""))
    masks = [read_frame(data)[3] for data in frames]
    assert None not in masks
    assert len(set(masks)) == len(masks) == 81


def test_a_server_masks_nothing():
    end = End(False)
    protocol = end.protocol
    assert protocol.encode(TEXT, True, b"hello") == b"\x81\x05hello"
    assert protocol.ping(b"p", True)[1] == b"\x89\x01p"
    assert protocol.pong(b"p") == b"\x8a\x01p"
    assert protocol.close(1000, "ok") == b"\x88\x04\x03\xe8ok"


def test_two_ends_talk_to_each_other(client):
    ours, theirs = Connection(Config(), client), Connection(Config(), not client)
    data = ours.encode(ours.begin_message(TEXT, False), False, b"a")
    data += ours.ping(b"p", True)[1]
    data += ours.encode(ours.begin_message(TEXT, True), True, b"b")
    data += ours.close(4000, "bye")
    assert drive(theirs, *octets(data)) == [
        (TEXT, "a", False),
        (CONTINUATION, "b", True),
        (CLOSE, 4000, "bye"),
    ]
    assert drive(ours, b"".join(theirs.replies)) == [(PONG, b"p", True), (CLOSE, 4000, "bye")]


# -- any stream, any cut

_text = st.text(max_size=12).map(str.encode)
_payload = st.one_of(
    st.tuples(st.just(TEXT), _text),
    st.tuples(st.just(BINARY), st.binary(max_size=12)),
    st.tuples(st.just(BINARY), st.sampled_from([bytes(125), bytes(126), bytes(300)])),
)
_message = st.tuples(
    _payload,
    st.lists(st.integers(0, 12), max_size=3),  # where it is cut into frames
    st.lists(st.binary(max_size=6), max_size=2),  # pings after each frame
)


@st.composite
def streams(draw, client: bool):
    """(bytes, events, pongs) of a peer that keeps to the rules."""
    stream, events, pongs = b"", [], []
    mask = None if client else draw(st.binary(min_size=4, max_size=4))
    for (opcode, payload), cuts, pings in draw(st.lists(_message, max_size=4)):
        parts = cut(payload, [min(position, len(payload)) for position in cuts])
        done, before = 0, ""
        for index, part in enumerate(parts):
            final = index == len(parts) - 1
            code = CONTINUATION if index else opcode
            stream += frame(code, part, fin=final, mask=mask)
            done += len(part)
            if opcode == TEXT:
                so_far = payload[:done].decode(errors="ignore")
                events.append((code, so_far[len(before) :], final))
                before = so_far
            else:
                events.append((code, part, final))
            for ping in pings:
                stream += frame(PING, ping, mask=mask) + frame(PONG, ping, mask=mask)
                pongs.append((PONG, ping))
    if draw(st.booleans()):
        code = draw(st.sampled_from([None, *VALID_CODES]))
        stream += close_frame(code, b"" if code is None else b"r", mask=mask)
        stream += draw(st.binary(max_size=5))
        events.append((CLOSE, code or 1005, "" if code is None else "r"))
        pongs.append((CLOSE, b"" if code is None else body(code, b"r")))
    return stream, events, pongs


@examples(250)
@given(st.data(), st.booleans())
def test_any_stream_gives_the_same_events_at_any_cut(data, client):
    stream, events, answers = data.draw(streams(client))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    for chunks in ([stream], cut(stream, cuts), octets(stream)):
        end = End(client)
        assert end.drive(*chunks) == events
        assert end.replies() == answers


def _survives(client: bool, chunks: list[bytes]) -> None:
    """No bytes raise; the connection is open, or over with one Close as its last answer."""
    protocol = Connection(Config(max_message_size=1000, max_fragments=5), client)
    for chunk in chunks:
        lend(protocol, chunk)
        for _ in range(len(chunk) + 2):
            event = protocol.next_event()
            assert event in (CONTINUATION, TEXT, BINARY, CLOSE, PONG, NOTHING)
            if event in (NOTHING, CLOSE):
                break
        else:
            raise AssertionError("more events than bytes")
        assert (event == CLOSE) == (protocol.state == CLOSED)
    answers = [opcode for _, opcode, _ in read_frames(b"".join(protocol.replies))]
    assert set(answers) <= {PONG, CLOSE}
    assert answers.count(CLOSE) == (protocol.state == CLOSED)
    assert CLOSE not in answers[:-1]
    protocol.feed_eof()
    assert protocol.next_event() == CLOSE


@examples(300)
@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=3), st.booleans())
def test_garbage_raises_nothing(garbage, cuts, client):
    _survives(client, cut(garbage, [min(position, len(garbage)) for position in cuts]))


@examples(300)
@given(st.data(), st.booleans())
def test_a_damaged_stream_raises_nothing(data, client):
    stream, _, _ = data.draw(streams(client))
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged:
            index = data.draw(st.integers(0, len(damaged) - 1))
            change = data.draw(st.integers(0, 2))
            if change == 0:
                damaged[index] ^= 1 << data.draw(st.integers(0, 7))
            elif change == 1:
                del damaged[index]
            else:
                damaged.insert(index, data.draw(st.integers(0, 255)))
    _survives(client, [bytes(damaged)])
    _survives(client, octets(bytes(damaged)))
    whole, by_bytes = End(client), End(client)
    assert whole.drive(bytes(damaged)) == by_bytes.drive(*octets(bytes(damaged)))
    assert whole.replies() == by_bytes.replies()


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_partial_message_is_freed_with_its_connection(opcode: int) -> None:
    end = End(client=False, max_message_size=1 << 22)
    whole = end.frame(opcode, b"x" * (1 << 22))
    tracemalloc.start()
    try:
        for start in range(0, 1 << 21, 1 << 16):
            assert end.drive(whole[start : start + (1 << 16)]) == []
        assert tracemalloc.get_traced_memory()[0] > 1 << 21
        end.protocol.feed_eof("lost")
        assert end.protocol.next_event() == CLOSE
        assert tracemalloc.get_traced_memory()[0] < 1 << 19
    finally:
        tracemalloc.stop()
