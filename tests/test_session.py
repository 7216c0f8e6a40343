"""``WebSocketHandler``: the producer, the session handler, and where the socket comes from."""

from __future__ import annotations

import io

import gevent
import pytest
from gevent import pywsgi, socket
from werkzeug import Request
from werkzeug.exceptions import abort
from werkzeug.utils import redirect

from greenws import (
    HandshakeError,
    WebSocket,
    WebSocketHandler,
    WebSocketSessionHandler,
)
from greenws.session import refusal, take_read_ahead

from .support.limits import wait_until
from .support.wire import CLOSE, TEXT, Peer, close_frame, frame


class Echo(WebSocketSessionHandler):
    socket_protocol = "echo"

    def handle_session(self, request, socket):
        while True:
            text, opcode, final = socket.read_string_message()
            if text is None:
                socket.close()
                return
            socket.send_string_message(text, final=final)


def producer(request, protocols):
    return Echo() if "echo" in protocols else None


# -- the producer


def test_the_producer_gets_the_request_and_the_offered_protocols(serve):
    seen = []

    def produce(request, protocols):
        seen.append((request, protocols))
        return Echo()

    with Peer.open(
        serve(WebSocketHandler(produce)).address,
        "/room/7?name=ada",
        Sec_WebSocket_Protocol="chat, echo",
        Cookie="session=1",
    ):
        request, protocols = seen[0]
    assert isinstance(request, Request)
    assert (request.path, request.args["name"]) == ("/room/7", "ada")
    assert request.cookies["session"] == "1"
    assert protocols == ["chat", "echo"]


def test_the_protocol_of_the_handler_is_chosen(serve):
    with Peer.connect(serve(WebSocketHandler(producer)).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol="chat, echo")
        assert (response.status, response.headers["sec-websocket-protocol"]) == (101, "echo")


def test_none_refuses_with_400(serve):
    with Peer.connect(serve(WebSocketHandler(producer)).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol="chat")
        assert (response.status, response.body) == (400, b"WebSocket protocols not supported.\n")


def test_none_for_a_client_that_offers_no_protocol_is_logged(serve, caplog):
    caplog.set_level("INFO", "greenws")
    app = WebSocketHandler(lambda request, protocols: None)
    for offered in ("chat", None):
        with Peer.connect(serve(app).address) as peer:
            assert peer.shake("/chat", Sec_WebSocket_Protocol=offered).status == 400
    assert [record.getMessage() for record in caplog.records] == [
        "'/chat' is refused with 400: its handler producer returned None, which says that no "
        "subprotocol fits; the client offers none"
    ]


@pytest.mark.parametrize("offered", [None, "chat", "ech", "echo2", "ECHO"])
def test_a_protocol_that_the_client_did_not_offer_refuses_with_400(serve, offered):
    app = WebSocketHandler(lambda request, protocols: Echo())
    with Peer.connect(serve(app).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol=offered)
        assert response.status == 400
        assert b"'echo'" in response.body


def test_a_handler_without_protocol_accepts_any_client(serve):
    class Plain(Echo):
        socket_protocol = None

    app = WebSocketHandler(lambda request, protocols: Plain())
    with Peer.connect(serve(app).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol="chat")
        assert response.status == 101
        assert "sec-websocket-protocol" not in response.headers


def test_an_http_exception_of_the_producer_becomes_the_response(serve):
    app = WebSocketHandler(lambda request, protocols: abort(401))
    with Peer.connect(serve(app).address) as peer:
        assert peer.shake().status == 401
    app = WebSocketHandler(lambda request, protocols: abort(redirect("/login")))
    with Peer.connect(serve(app).address) as peer:
        response = peer.shake()
        assert (response.status, response.headers["location"]) == (302, "/login")


@pytest.mark.parametrize(
    "produce",
    [
        lambda request, protocols: 1 / 0,
        lambda request, protocols: "not a handler",
        lambda request: Echo(),
    ],
)
def test_a_broken_producer_is_a_500_and_logged_once(serve, error_log, produce):
    with Peer.connect(serve(WebSocketHandler(produce)).address) as peer:
        response = peer.shake("/broken")
        assert response.status == 500
        assert b"ZeroDivisionError" not in response.body
    (record,) = error_log.take()
    assert record.exc_info and "/broken" in record.getMessage()


def test_a_subprotocol_that_cannot_be_a_header_is_never_sent(serve):
    class Bad(Echo):
        socket_protocol = "a\r\nSet-Cookie: x=y"

    with Peer.connect(serve(WebSocketHandler(lambda r, p: Bad())).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol="a")
        assert response.status == 400
        assert "set-cookie" not in response.headers


# -- the session


def test_the_socket_knows_its_request(serve):
    seen = []

    class Look(WebSocketSessionHandler):
        socket_protocol = "look"

        def handle_session(self, request, socket):
            seen.append((request is socket.request, socket.subprotocol, socket.remote_address))
            assert isinstance(socket, WebSocket)

    app = WebSocketHandler(lambda request, protocols: Look())
    with Peer.open(serve(app).address, Sec_WebSocket_Protocol="look") as peer:
        assert peer.read_frame()[1] == CLOSE
        peer.send(close_frame())
        assert seen == [(True, "look", peer.sock.getsockname())]


def test_each_session_has_its_own_greenlet(serve):
    class Count(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            greenlets.append(gevent.getcurrent())
            socket.receive()

    greenlets = []
    server = serve(WebSocketHandler(lambda request, protocols: Count()))
    peers = [Peer.open(server.address) for _ in range(5)]
    wait_until(lambda: len(set(greenlets)) == 5)
    for peer in peers:
        peer.close()


def test_a_session_that_returns_closes_with_1000(serve):
    class Short(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            socket.send("bye")

    with Peer.open(serve(WebSocketHandler(lambda r, p: Short())).address) as peer:
        assert peer.read_frame() == (True, TEXT, b"bye")
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe8")
        peer.send(close_frame())
        assert peer.at_end()


def test_handle_session_must_be_there():
    with pytest.raises(TypeError, match="handle_session"):
        WebSocketSessionHandler()


# -- options


def test_options_are_checked_when_they_are_set():
    with pytest.raises(TypeError, match="no option 'max_size'.*max_message_size"):
        WebSocketHandler(producer, max_size=5)
    with pytest.raises(ValueError, match="max_message_size"):
        WebSocketHandler(producer, max_message_size=0)
    with pytest.raises(TypeError, match="function"):
        WebSocketHandler(Echo())


# -- sockets


def test_without_a_socket_the_answer_is_501(error_log):
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "other/1.0",
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "HTTP_HOST": "x",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    statuses = []
    body = b"".join(
        WebSocketHandler(producer)(environ, lambda status, headers: statuses.append(status))
    )
    assert statuses[0].startswith("501")
    assert b"other/1.0 hands over no socket" in body and b"WebSocketServer" in body
    (record,) = error_log.take()
    assert "other/1.0" in record.getMessage()


def test_a_pywsgi_server_without_our_handler_gets_501_with_advice(serve, error_log):
    with Peer.connect(serve(WebSocketHandler(producer), cls=pywsgi.WSGIServer).address) as peer:
        response = peer.shake(Sec_WebSocket_Protocol="echo")
        assert response.status == 501
        assert b"handler_class=greenws.UpgradeHandler" in response.body
    error_log.take()


def test_the_read_ahead_is_taken_without_blocking():
    ours, theirs = socket.socketpair()
    rfile = ours.makefile("rb", -1)
    assert take_read_ahead(rfile, ours) == b""
    theirs.sendall(b"line\nbehind")
    assert rfile.readline() == b"line\n"
    assert take_read_ahead(rfile, ours) == b"behind"
    assert take_read_ahead(rfile, ours) == b""
    assert ours.gettimeout() is None
    for thing in (rfile, ours, theirs):
        thing.close()


def test_a_refusal_is_one_line_of_text():
    statuses = []
    body = refusal(HandshakeError("No.", 418, [("X-Why", "tea")]))(
        {"REQUEST_METHOD": "GET"}, lambda status, headers: statuses.append((status, dict(headers)))
    )
    status, headers = statuses[0]
    assert status.startswith("418")
    assert headers["X-Why"] == "tea" and headers["Content-Type"].startswith("text/plain")
    assert b"".join(body) == b"No.\n"


def test_fragments_come_and_go_one_by_one(serve):
    with Peer.open(
        serve(WebSocketHandler(producer)).address, Sec_WebSocket_Protocol="echo"
    ) as peer:
        peer.send(frame(TEXT, b"a", fin=False))
        assert peer.read_frame() == (False, TEXT, b"a")
        peer.send(frame(0, b"b"))
        assert peer.read_frame() == (True, 0, b"b")
