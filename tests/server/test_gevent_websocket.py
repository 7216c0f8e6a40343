"""gevent-websocket's world: its object, its applications, and the libraries built on it.

Where it can, a test runs under the original server too (``world``): what we replace must behave
alike.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import gevent
import geventwebsocket
import pytest
from gevent import pywsgi
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.threadpool import ThreadPool
from geventwebsocket import Resource, WebSocketApplication, WebSocketError
from geventwebsocket.exceptions import ProtocolError
from geventwebsocket.protocols.base import BaseProtocol
from geventwebsocket.websocket import WebSocket as Original

from greenws import (
    Config,
    UpgradeHandler,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    keepalive,
)
from greenws.websocket import WebSocket

from ..support.limits import again_after_standstill, limit, pace, stays, wait_until
from ..support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, close_frame, frame


@pytest.fixture(params=["greenws", "original"])
def world(request, serve):
    """Starts an application under our server, and under gevent-websocket's own."""
    if request.param == "greenws":
        return serve
    return lambda app, **options: serve(app, cls=geventwebsocket.WebSocketServer, **options)


def bare(function):
    """An application of environ["wsgi.websocket"], as gevent-websocket's README has it."""

    def app(environ, start_response):
        function(environ["wsgi.websocket"])
        return []

    return app


# -- applications


class Recorder(WebSocketApplication):
    events: list

    def on_open(self):
        self.events.append("open")

    def on_message(self, message):
        self.events.append(message)
        if message is not None:
            self.ws.send(message)

    def on_close(self, reason):
        self.events.append(("close", reason))


def test_resource_and_application(world):
    class App(Recorder):
        events = []

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        return [b"page"]

    server = world(Resource(OrderedDict([("^/ws", App), ("/.*", page)])))
    with Peer.connect(server.address) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert peer.read_response().body == b"page"
    with Peer.open(server.address, "/ws") as peer:
        peer.send(frame(TEXT, b"text") + frame(BINARY, b"bytes"))
        assert peer.read_frame() == (True, TEXT, b"text")
        assert peer.read_frame() == (True, BINARY, b"bytes")
        peer.send(close_frame(1000))
        assert peer.read_frame()[:2] == (True, CLOSE)
    wait_until(lambda: any(isinstance(event, tuple) for event in App.events))
    assert App.events[:4] == ["open", "text", bytearray(b"bytes"), None]
    assert isinstance(App.events[2], bytearray)
    assert {event[0] for event in App.events[4:]} == {"close"}


class Chat(BaseProtocol):
    PROTOCOL_NAME = "chat"


class ChatApp(Recorder):
    events: list = []
    protocol_class = Chat


@pytest.mark.parametrize(
    ("offered", "chosen"), [("chat", "chat"), ("other, chat", "chat"), ("other", None)]
)
def test_the_protocol_of_an_application(world, offered, chosen):
    server = world(Resource(OrderedDict([("/", ChatApp)])))
    with Peer.connect(server.address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol=offered)
        assert response.status == 101
        assert response.headers.get("sec-websocket-protocol") == chosen


def test_protocols_are_compared_as_tokens(serve):
    server = serve(Resource(OrderedDict([("/", ChatApp)])))
    with Peer.connect(server.address) as peer:  # the original finds "chat" in "chatter"
        response = peer.shake(Sec_WebSocket_Protocol="chatter")
        assert "sec-websocket-protocol" not in response.headers


# -- the object


def test_the_object_is_the_originals(serve):
    seen = []
    with Peer.open(serve(bare(lambda ws: seen.append(isinstance(ws, Original)))).address) as peer:
        assert peer.read_frame()[1] == CLOSE
    public = [name for name in dir(Original) if not name.startswith("_")]
    assert seen == [True] and len(public) > 20
    from greenws.server.gevent_websocket import GeventWebSocket

    assert [name for name in public if not hasattr(GeventWebSocket, name)] == []


def test_messages_in_their_types(world):
    got = []

    def talk(ws):
        while (message := ws.receive()) is not None:
            got.append(message)
        with pytest.raises(WebSocketError):
            ws.receive()
        with pytest.raises(WebSocketError):
            ws.send("too late")
        got.append(ws.closed)

    with Peer.open(world(bare(talk)).address) as peer:
        peer.send(frame(TEXT, "tëxt".encode()) + frame(BINARY, b"\xff") + frame(TEXT))
        peer.send(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"))
        assert peer.read_frame() == (True, PONG, b"p")
        peer.send(close_frame(1001))
        wait_until(lambda: len(got) == 5)
    assert got == ["tëxt", bytearray(b"\xff"), "", "ab", True]
    assert [type(message) for message in got[:2]] == [str, bytearray]


def test_sending(world):
    def talk(ws):
        ws.send("text")
        ws.send(b"bytes")
        ws.send(bytearray(b"array"))
        ws.send(b"as binary", binary=True)
        ws.send("forced text", binary=False)
        ws.send_frame("frame", ws.OPCODE_TEXT)
        ws.send_frame(b"frame", ws.OPCODE_BINARY)
        ws.send_frame("ping", ws.OPCODE_PING)
        ws.send_frame(b"pong", ws.OPCODE_PONG)
        ws.close(1001, "bye")

    with Peer.open(world(bare(talk)).address) as peer:
        assert [peer.read_frame()[1:] for _ in range(9)] == [
            (TEXT, b"text"),
            (BINARY, b"bytes"),
            (BINARY, b"array"),
            (BINARY, b"as binary"),
            (TEXT, b"forced text"),
            (TEXT, b"frame"),
            (BINARY, b"frame"),
            (PING, b"ping"),
            (PONG, b"pong"),
        ]
        # The original forgets the code: the body of its Close is the reason alone.
        assert peer.read_frame()[1] == CLOSE


def test_a_frame_with_opcode_close_closes(serve):
    def talk(ws):
        ws.send_frame(b"bye", ws.OPCODE_CLOSE)
        assert ws.closed
        with pytest.raises(WebSocketError, match="already closed"):
            ws.send_frame("too late", ws.OPCODE_TEXT)

    with Peer.open(serve(bare(talk)).address) as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe8bye")
        peer.send(close_frame())
        assert peer.at_end()


def test_a_frame_with_an_unknown_opcode_is_refused_and_nothing_is_sent(serve):
    def talk(ws):
        for opcode in (0x3, 0xB, -1, ws.OPCODE_CONTINUATION):
            with pytest.raises(ProtocolError, match=f"opcode {opcode}"):
                ws.send_frame("x", opcode)
        ws.send("goes on")

    with Peer.open(serve(bare(talk)).address) as peer:
        assert peer.read_frame() == (True, TEXT, b"goes on")
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe8")
        peer.send(close_frame())


def test_a_frame_at_a_time(serve):
    got = []

    def talk(ws):
        for _ in range(2):
            header, payload = ws.read_frame()
            got.append((header.fin, header.opcode, header.length, payload))

    with Peer.open(serve(bare(talk)).address) as peer:
        peer.send(frame(BINARY, b"one", fin=False) + frame(CONTINUATION, b"two!"))
        assert peer.read_frame()[1] == CLOSE
    assert got == [(False, BINARY, 3, b"one"), (True, CONTINUATION, 4, b"two!")]


@again_after_standstill(0.2)
def test_closing_does_not_wait(world):
    seconds = []

    def talk(ws):
        began = time.monotonic()
        ws.close()
        seconds.append(time.monotonic() - began)
        assert ws.closed

    with Peer.open(world(bare(talk)).address) as peer:
        assert peer.read_frame()[1] == CLOSE
        wait_until(lambda: seconds)
        peer.send(close_frame())
    assert seconds[0] < pace(1)


def test_a_close_code_of_the_program_is_sent(serve):
    with Peer.open(serve(bare(lambda ws: ws.close(4001, b"reason"))).address) as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x0f\xa1reason")


def test_a_lost_peer_makes_receive_return_none_and_calls_on_close(world):
    events = []

    class App:
        class current_app:
            @staticmethod
            def on_close(reason):
                events.append(reason)

        def __call__(self, environ, start_response):
            events.append(environ["wsgi.websocket"].receive())
            return []

    with Peer.open(world(App()).address) as peer:
        peer.close()
        wait_until(lambda: len(events) > 1)
    assert None in events and "Connection closed" in events


def test_what_describes_the_request(world):
    seen = []

    def talk(ws):
        seen.append((ws.version, ws.path, ws.origin, ws.protocol, ws.closed))
        seen.append((ws.environ["QUERY_STRING"], ws.handler.server is server))
        ws.logger.debug("fine")

    server = world(bare(talk))
    with Peer.open(
        server.address, "/p?q=1", Origin="http://o", Sec_WebSocket_Protocol="a, b"
    ) as peer:
        assert peer.read_frame()[1] == CLOSE
    assert seen == [("13", "/p", "http://o", "a, b", False), ("q=1", True)]


# -- the lazy upgrade


def test_describing_the_request_does_not_accept_it(serve):
    accepted = []

    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        str((ws.version, ws.path, ws.origin, ws.protocol, ws.closed))
        accepted.append(ws.accepted)
        start_response("401 Unauthorized", [("Content-Length", "2")])
        return [b"no"]

    with Peer.connect(serve(app).address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == (401, b"no")
    assert accepted == [None]


def test_a_loop_that_only_looks_whether_it_is_closed_accepts(serve):
    """The receiving half of Heroku's chat, to which another greenlet sends."""
    sockets = []

    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        sockets.append(ws)
        while not ws.closed:
            gevent.sleep(0.01)
        sockets.remove(ws)
        return []

    with Peer.open(serve(app).address) as peer:
        sockets[0].send("from elsewhere")
        assert peer.read_frame() == (True, TEXT, b"from elsewhere")
        sockets[0].close()
        assert peer.read_close(answer=True) == (1000, b"")
        wait_until(lambda: not sockets)


def test_a_loop_that_looks_whether_it_is_closed_is_refused_by_origin(serve):
    def app(environ, start_response):
        while not environ["wsgi.websocket"].closed:
            gevent.sleep(0)
        return []

    server = serve(app, config=Config(allowed_origins=["https://here.example"]))
    with Peer.connect(server.address) as peer:
        assert peer.shake(Origin="https://elsewhere.example").status == 403


def refuse_after(read):
    """An application that reads ``closed``, and refuses."""

    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        read(ws)
        assert ws.accepted is None
        start_response("401 Unauthorized", [("Content-Length", "2")])
        return [b"no"]

    return app


def test_reading_closed_where_the_program_goes_by_accepts_nothing(serve):
    def read(ws):
        assert not ws.closed  # a middleware
        gevent.sleep(0.01)  # asks a database
        assert not ws.closed
        gevent.sleep(0.01)
        assert not ws.closed
        gevent.sleep(0.01)
        assert not ws.closed

    with Peer.connect(serve(refuse_after(read)).address) as peer:
        assert peer.shake().status == 401


@pytest.mark.parametrize("times", [2, 3])
def test_the_third_reading_of_closed_in_a_loop_accepts(serve, times):
    accepted = []

    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        for _ in range(times):
            assert not ws.closed
            accepted.append(ws.accepted is not None)
            gevent.sleep(0.01)
        start_response("401 Unauthorized", [("Content-Length", "2")])
        return [b"no"]

    with Peer.connect(serve(app).address) as peer:
        assert peer.shake().status == (401 if times == 2 else 101)
    assert accepted == [False, False, True][:times]


def test_a_loop_that_reads_closed_in_several_lines_accepts(serve, monkeypatch):
    monkeypatch.setattr(keepalive, "_POLL_INPUT_INTERVAL", 0.05)  # such a loop reads no input

    def talk(ws):
        while not ws.closed:
            gevent.sleep(0.01)
            if ws.closed:
                break

    with Peer.open(serve(bare(talk)).address) as peer:
        peer.send(close_frame())
        assert peer.read_close()[0] == 1000


def test_reading_closed_in_a_loop_that_does_not_wait_accepts_nothing(serve):
    def read(ws):
        for _ in range(5):
            assert not ws.closed
            with gevent.Timeout(5):  # moves the loop's time
                time.sleep(0.002)

    with Peer.connect(serve(refuse_after(read)).address) as peer:
        assert peer.shake().status == 401


def test_reading_closed_in_a_loop_of_another_greenlet_accepts_nothing(serve):
    def read(ws):
        def watch():
            for _ in range(5):
                assert not ws.closed
                gevent.sleep(0.001)

        gevent.spawn(watch).get()

    with Peer.connect(serve(refuse_after(read)).address) as peer:
        assert peer.shake().status == 401


def test_reading_closed_in_a_loop_after_start_response_accepts_nothing(serve):
    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        start_response("401 Unauthorized", [("Content-Length", "2")])
        for _ in range(5):
            assert not ws.closed
            gevent.sleep(0.001)
        return [b"no"]

    with Peer.connect(serve(app).address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == (401, b"no")


@pytest.fixture
def new_thread():
    """A pool of one thread, which has no hub yet."""
    pool = ThreadPool(1)
    yield pool
    pool.kill()


def test_the_socket_of_a_registered_client_makes_no_hub_in_a_thread(serve, new_thread):
    looks = []

    def look(client):
        looks.append((client.ws.closed, get_hub_if_exists()))

    @WebSocketHandler
    def handler(request, protocols):
        return Waiting()

    class Waiting(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            socket.receive()

    server = serve(handler)
    with Peer.open(server.address):
        (client,) = wait_until(lambda: list(server.clients.values()))
        new_thread.spawn(look, client).get()
    assert looks == [(False, None)]


def test_looking_from_another_thread_accepts_nothing(serve, new_thread):
    looks = []

    def look(ws):
        for _ in range(3):
            looks.append((ws.closed, get_hub_if_exists()))
            time.sleep(0.005)

    def app(environ, start_response):
        new_thread.spawn(look, environ["wsgi.websocket"]).get()
        start_response("401 Unauthorized", [("Content-Length", "2")])
        return [b"no"]

    with Peer.connect(serve(app).address) as peer:
        assert peer.shake().status == 401
    assert looks == [(False, None)] * 3


def test_a_client_that_has_gone_ends_a_loop_that_only_looks(serve):
    has_begun, has_gone, ends = Event(), Event(), Event()

    def app(environ, start_response):
        ws = environ["wsgi.websocket"]
        assert not ws.closed
        has_begun.set()
        has_gone.wait(limit())
        while not ws.closed:
            gevent.sleep(0.01)
        ends.set()
        return []

    with Peer.connect(serve(app).address) as peer:
        shaking = gevent.spawn(peer.shake)
        assert has_begun.wait(limit())
        shaking.kill()
        peer.reset()
    has_gone.set()
    assert ends.wait(limit())


@pytest.mark.parametrize("result", [[], [b"ignored"], None])
def test_an_application_that_neither_uses_nor_answers_is_accepted_and_closed(serve, result):
    with Peer.open(serve(lambda environ, start_response: result).address) as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe8")
        peer.send(close_frame())
        assert peer.at_end()


@pytest.mark.parametrize("eager", [False, True])
def test_eager_accepts_before_the_application_is_called(serve, eager):
    class Handler(UpgradeHandler):
        pass

    Handler.eager = eager
    go_on = Event()

    def app(environ, start_response):
        go_on.wait(limit())
        environ["wsgi.websocket"].send("hello")
        return []

    with Peer.connect(serve(app, handler_class=Handler).address) as peer:
        shaking = gevent.spawn(peer.shake)
        if eager:
            wait_until(shaking.ready)
        else:
            stays(lambda: not shaking.ready())
        go_on.set()
        assert shaking.get().status == 101
        assert peer.read_frame() == (True, TEXT, b"hello")


def test_the_first_use_may_come_from_another_greenlet(serve):
    def talk(ws):
        writer = gevent.spawn(ws.send, "from a writer")
        assert ws.receive() == "x"
        writer.join()

    with Peer.open(serve(bare(talk)).address) as peer:
        assert peer.read_frame() == (True, TEXT, b"from a writer")
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame()[1] == CLOSE


# -- the server's side


def test_clients_and_active_client(world):
    def talk(ws):
        assert ws.handler.active_client.ws is ws
        assert ws.handler.active_client.address == ws.handler.client_address
        ws.receive()

    server = world(bare(talk))
    with Peer.open(server.address) as one, Peer.open(server.address) as two:
        wait_until(lambda: len(server.clients) == 2)
        for client in server.clients.values():
            client.ws.send("to all")
        assert one.read_frame() == two.read_frame() == (True, TEXT, b"to all")
    wait_until(lambda: not server.clients)


@pytest.mark.parametrize("plain", [True, False])
def test_pre_start_hook(world, plain):
    def app(environ, start_response):
        if "wsgi.websocket" in environ:
            environ["wsgi.websocket"].send("upgraded")
            return []
        start_response("200 OK", [("Content-Length", "5")])
        return [b"plain"]

    server = world(app, pre_start_hook=lambda handler: plain)
    with Peer.connect(server.address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == ((200, b"plain") if plain else (101, b""))


def test_an_exception_closes_with_1011(serve, error_log):
    def fail(ws):
        ws.receive()
        raise LookupError("in the application")

    with Peer.open(serve(bare(fail)).address, "/room") as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, CLOSE, b"\x03\xf3")
        peer.send(close_frame(1011))
        assert peer.at_end()
    (record,) = wait_until(error_log.take)
    assert "in the application" in str(record.exc_info[1])
    assert record.getMessage().startswith("session failed: '/room' ('127.0.0.1', ")


def test_websocket_error_is_a_normal_end(serve):
    def talk(ws):
        while True:
            ws.receive()

    with Peer.open(serve(bare(talk)).address) as peer:
        peer.send(close_frame())
        assert peer.read_close() == (1000, b"")


def test_frames_of_two_senders_do_not_interleave(serve):
    def talk(ws):
        senders = [gevent.spawn(ws.send, bytes([i]) * 300_000) for i in range(8)]
        gevent.joinall(senders, raise_error=True)

    with Peer.open(serve(bare(talk)).address) as peer:
        for _ in range(8):
            payload = peer.read_frame()[2]
            assert payload == payload[:1] * 300_000


def test_the_socket_underneath_is_ours(serve):
    seen = []
    with Peer.open(serve(bare(lambda ws: seen.append(ws.accept()))).address) as peer:
        assert peer.read_frame()[1] == CLOSE
    assert isinstance(seen[0], WebSocket)


def test_the_limits_of_a_program_that_is_not_ours(serve):
    class Handler(UpgradeHandler):
        config = Config(max_message_size=5)

    server = serve(bare(lambda ws: ws.receive()), cls=pywsgi.WSGIServer, handler_class=Handler)
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"sixsix"))
        assert peer.read_close()[0] == 1009


def test_our_server_takes_the_originals_arguments(serve):
    server = serve(bare(lambda ws: None), debug=True, pre_start_hook=None, environ={"a": "b"})
    assert isinstance(server, (WebSocketServer, geventwebsocket.WebSocketServer))
    assert server.debug is True
