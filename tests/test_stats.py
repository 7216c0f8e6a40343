"""The counters of a server, and the line that it logs for each session."""

from __future__ import annotations

import logging

import gevent
import pytest

from greenws import Config, Routes
from greenws.stats import escape, of_this_process, total

from .support.limits import again_after_standstill, pace, wait_until
from .support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame


def make_routes(**options):
    routes = Routes()

    @routes.websocket("/echo", **options)
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    @routes.websocket("/chat/<room>", protocols=["chat"], **options)
    def chat(request, socket, room):
        socket.close(4001, 'a "reason"\x1b[31m')

    return routes


@pytest.fixture
def access(caplog):
    """Gives the lines about sessions, as soon as there are so many."""
    caplog.set_level(logging.INFO, "greenws.access")

    def lines(count):
        def found():
            return [r.getMessage() for r in caplog.records if r.name == "greenws.access"]

        wait_until(lambda: len(found()) >= count)
        assert len(found()) == count
        return found()

    return lines


def closed(peer, code=1000):
    peer.send(close_frame(code))
    while peer.read_frame()[1] != CLOSE:
        pass
    assert peer.at_end()


def test_connections_messages_and_bytes_are_counted_while_they_are_open_and_after(serve):
    server = serve(make_routes())
    stats = server.stats
    data = frame(TEXT, b"x" * 10) * 3 + frame(BINARY, b"a", fin=False) + frame(0, b"b")
    with Peer.open(server.address, "/echo", early=frame(PING, b"p")) as one:
        assert one.read_frame() == (True, PONG, b"p")
        with Peer.open(server.address, "/echo") as two:
            one.send(data)
            for _ in range(4):
                one.read_frame()
            assert (stats.connections_open, stats.connections_total) == (2, 2)
            assert stats.traffic == (4, len(data) + 7, 4, 3 * 12 + 4 + 3)
            assert stats.closes == {}
            closed(two, 4000)
        closed(one)
    wait_until(lambda: stats.connections_open == 0)
    assert stats.as_dict() == {
        "connections_open": 0,
        "connections_total": 2,
        "refused": {},
        "messages_in": 4,
        "bytes_in": len(data) + 7 + 8 + 8,
        "messages_out": 4,
        "bytes_out": 43 + 4 + 4,
        "closes": {1000: 1, 4000: 1},
        "pings_timed_out": 0,
        "expired": 0,
    }


def test_a_large_message_and_a_batch_are_counted_in_full(serve):
    server = serve(make_routes())
    with Peer.open(server.address, "/echo") as peer:
        sending = gevent.spawn(peer.send, frame(BINARY, b"x" * 900_000) + frame(TEXT, b"y") * 100)
        for _ in range(101):
            peer.read_frame()
        sending.get()
        assert server.stats.traffic == (101, 900_014 + 700, 101, 900_010 + 300)
        closed(peer)


def test_refused_handshakes_are_counted_by_reason(serve):
    server = serve(make_routes(), config=Config(allowed_origins="self"))

    def refused(path="/echo", **headers):
        with Peer.connect(server.address) as peer:
            return peer.shake(path, **headers).status

    assert refused(Sec_WebSocket_Version="8") == 426
    assert refused(Sec_WebSocket_Key="x") == 400
    assert refused(method="POST") == 405
    assert refused(Origin="http://evil.org") == 403
    assert refused("/chat/1") == 400
    assert refused("/nowhere") == 404
    wait_until(lambda: server.stats.refused.total() == 6)
    assert server.stats.refused == {
        "version": 1,
        "malformed": 1,
        "method": 1,
        "origin": 1,
        "subprotocol": 1,
        "application": 1,
    }
    assert server.stats.connections_total == 0


def test_pings_that_timed_out_are_counted(serve):
    server = serve(make_routes(ping_interval=0.03, ping_timeout=0.03))
    with Peer.open(server.address, "/echo"):
        wait_until(lambda: server.stats.pings_timed_out == 1)
    assert server.stats.closes == {1006: 1}


def test_sessions_whose_lifetime_is_over_are_counted(serve):
    server = serve(make_routes(max_lifetime=0.05))
    with Peer.open(server.address, "/echo") as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe9max_lifetime")
        assert server.stats.expired == 0  # it has not ended
        peer.send(close_frame(1001))
    wait_until(lambda: server.stats.closes == {1001: 1})
    assert server.stats.expired == 1


@pytest.mark.parametrize("code", [1000, 1011, None])
def test_a_session_is_counted_by_the_first_close_whatever_the_peer_answers(
    serve, access, error_log, code
):
    """websocket-client and aiohttp answer any Close with 1000; an alert watches for 1011."""
    routes = Routes()

    @routes.websocket("/fails")
    def fails(request, socket):
        socket.receive()
        raise KeyError

    server = serve(routes)
    with Peer.open(server.address, "/fails") as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, CLOSE, b"\x03\xf3")
        peer.send(frame(CLOSE, b"") if code is None else close_frame(code))
    wait_until(lambda: server.stats.closes)
    assert server.stats.closes == {1011: 1}
    assert "closed 1011 by us" in access(1)[0]
    error_log.take()


def test_gevent_websockets_sessions_are_counted_too(serve, access):
    def app(environ, start_response):
        socket = environ["wsgi.websocket"]
        socket.send(socket.receive())

    server = serve(app)
    with Peer.open(server.address, "/its/path") as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
        closed(peer)
    (line,) = access(1)
    assert '"/its/path"' in line and "closed 1000 by us" in line
    assert server.stats.traffic.messages_in == 1


def test_the_figures_of_several_servers_are_added_up(serve):
    servers = [serve(make_routes()) for _ in range(2)]
    for number, server in enumerate(servers):
        with Peer.connect(server.address) as peer:
            assert peer.shake("/echo", Sec_WebSocket_Version="8").status == 426
        with Peer.open(server.address, "/echo") as peer:
            peer.send(frame(TEXT, b"x"))
            peer.read_frame()
            closed(peer, 4000 + number)
    all_stats = [server.stats for server in servers]
    assert set(all_stats) <= set(of_this_process())
    wait_until(lambda: not any(stats.connections_open for stats in all_stats))
    assert total(all_stats) == {
        "connections_open": 0,
        "connections_total": 2,
        "refused": {"version": 2},
        "messages_in": 2,
        "bytes_in": 2 * (7 + 8),
        "messages_out": 2,
        "bytes_out": 2 * (3 + 4),
        "closes": {4000: 2},
        "pings_timed_out": 0,
        "expired": 0,
    }
    assert total([]) == {}


# -- the access line


@again_after_standstill(1.0)
def test_a_session_leaves_one_line(serve, access):
    server = serve(make_routes())
    with Peer.open(server.address, "/echo?token=secret") as peer:
        peer.send(frame(TEXT, b"x"))
        peer.read_frame()
        closed(peer, 4000)
    (line,) = access(1)
    seconds = line.split(" after ")[1].split(" s")[0]
    assert 0 <= float(seconds) < pace()
    assert line == (
        f'127.0.0.1 "/echo" - closed 4000 by peer after {seconds} s, in 1 (15 bytes), '
        "out 1 (7 bytes)"
    )


def test_the_access_line_says_who_closed(serve, access):
    server = serve(make_routes())
    with Peer.open(server.address, "/chat/1", Sec_WebSocket_Protocol="chat") as peer:
        peer.read_frame()
        peer.send(close_frame(4001))
    assert '"/chat/1" chat closed 4001 by us' in access(1)[0]
    Peer.open(server.address, "/echo").reset()
    assert "closed 1006 by nobody" in access(2)[1]
    with Peer.open(server.address, "/echo") as peer:
        peer.send(frame(3))
    assert "closed 1002 by us" in access(3)[2]


def test_text_from_the_network_is_escaped(serve, access):
    config = Config(access_log='%(address)s "%(path)s" "%(reason)s"')
    server = serve(make_routes(), config=config, trusted_proxies=1)
    headers = {"X_Forwarded_For": "spo\\of \xe9"}
    with Peer.open(server.address, "/echo?%22%0a", **headers) as peer:
        peer.send(close_frame(4000, b'\x1b[31m"\n\xe2\x80\xae'))
        peer.read_close()
    (line,) = access(1)
    assert line == 'spo\\\\of \\xe9 "/echo" "\\x1b[31m\\x22\\n\\u202e"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ('a"b', "a\\x22b"),
        ("a\\b", "a\\\\b"),
        ("\x00\x1b\r\n\x7f", "\\x00\\x1b\\r\\n\\x7f"),
        ("é\ud800\U0001f600", "\\xe9\\ud800\\U0001f600"),
    ],
)
def test_escaping_leaves_one_line_of_visible_ascii(text, expected):
    assert escape(text) == expected


def test_the_access_log_can_be_switched_off(serve, access):
    server = serve(make_routes(), config=Config(access_log=None))
    with Peer.open(server.address, "/echo") as peer:
        closed(peer)
    wait_until(lambda: server.stats.closes)
    assert access(0) == []
