"""Answering a handshake on a server that knows nothing of greenws; refusals."""

from __future__ import annotations

import io

from gevent import pywsgi, socket

from greenws import (
    HandshakeError,
    WebSocketHandler,
    WebSocketSessionHandler,
)
from greenws.upgrade import refusal_response, take_read_ahead

from .support.wire import Peer


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
    assert b"other/1.0 does not hand over the socket" in body and b"WebSocketServer" in body
    (record,) = error_log.take()
    assert "other/1.0" in record.getMessage()


def test_the_refusal_of_a_pywsgi_server_with_its_own_handler_says_what_to_do(serve, error_log):
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
    body = refusal_response(HandshakeError("No.", 418, [("X-Why", "tea")]))(
        {"REQUEST_METHOD": "GET"}, lambda status, headers: statuses.append((status, dict(headers)))
    )
    status, headers = statuses[0]
    assert status.startswith("418")
    assert headers["X-Why"] == "tea" and headers["Content-Type"].startswith("text/plain")
    assert b"".join(body) == b"No.\n"
