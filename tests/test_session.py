"""``WebSocketHandler``: the producer, the session handler, and where the socket comes from."""

from __future__ import annotations

import functools

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from werkzeug import Request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import abort
from werkzeug.utils import redirect

import greenws.testing
from greenws import (
    Routes,
    UpgradeHandler,
    WebSocket,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    checks,
)

from .support.limits import wait_until
from .support.wire import CLOSE, TEXT, Peer, close_frame, frame, request


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


def test_what_none_means_is_logged(serve, caplog):
    app = WebSocketHandler(lambda request, protocols: None)
    for offered in ("chat, echo", None):
        with Peer.connect(serve(app).address) as peer:
            assert peer.shake("/chat", Sec_WebSocket_Protocol=offered).status == 400
    text = (
        "refused the handshake of 127.0.0.1 for '/chat' with 400 Bad Request: WebSocket protocols "
        "not supported. The handler producer returned None, which means that no subprotocol fits; "
        "the client offers "
    )
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{text}2.", f"{text}none."]  # names may be tokens


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
        lambda request, protocols: Echo,
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


def test_a_subprotocol_that_is_no_str_is_an_error_of_the_program(serve, error_log):
    def produce(request, protocols):
        echo = Echo()
        echo.socket_protocol = protocols
        return echo

    with Peer.connect(serve(WebSocketHandler(produce)).address) as peer:
        assert peer.shake(Sec_WebSocket_Protocol="a").status == 500
    (record,) = error_log.take()
    assert "subprotocols must be str, not ['a']" in str(record.exc_info[1])


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


@pytest.mark.parametrize("behind", ["nothing", "a middleware"])
def test_what_handle_session_returns_is_reported_once(serve, caplog, monkeypatch, behind):
    monkeypatch.setattr(checks, "_warned_results", set())

    class Returning(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            return {"a": 1}

    app = WebSocketHandler(lambda request, protocols: Returning())
    served = app if behind == "nothing" else lambda environ, start: app(environ, start)
    address = serve(served).address
    for _ in range(2):
        with Peer.open(address) as peer:
            assert peer.read_close(answer=True)[0] == 1000
            assert peer.at_end()
    (record,) = [each for each in caplog.records if each.name.startswith("greenws")]
    assert record.levelname == "WARNING"
    assert "Returning.handle_session(request, socket) returned {'a': 1}" in record.getMessage()


def test_a_decorator_that_makes_handle_session_async_is_an_error(serve, error_log):
    def wrapped(function):
        async def call(self, request, socket):
            function(self, request, socket)

        return lambda self, request, socket: call(self, request, socket)

    class Late(WebSocketSessionHandler):
        @wrapped
        def handle_session(self, request, socket):
            pass

    with Peer.open(serve(WebSocketHandler(lambda request, protocols: Late())).address) as peer:
        assert peer.read_close(answer=True)[0] == 1011
        assert peer.at_end()
    (record,) = error_log.take()
    assert record.exc_info is not None and "which runs nothing" in str(record.exc_info[1])


def test_handle_session_must_be_there():
    with pytest.raises(TypeError, match="handle_session"):
        WebSocketSessionHandler()


# -- headers of the 101 response


COOKIE = ("Set-Cookie", "seen=1; HttpOnly")


def headers_of(server, **options):
    """The lines of the 101 response below its status."""
    with Peer.connect(server.address) as peer:
        peer.send(request(**options))
        while b"\r\n\r\n" not in peer.buffer:
            assert peer._fill()
        head = peer.buffer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    assert head[0] == "HTTP/1.1 101 Switching Protocols"
    return head[1:]


@pytest.mark.parametrize(
    "headers",
    [[COOKIE], (COOKIE,), dict([COOKIE]), Headers([COOKIE])],
    ids=["list", "tuple", "dict", "Headers"],
)
@pytest.mark.parametrize("host", [WebSocketServer, WSGIServer])
def test_headers_of_a_session_go_with_the_101(serve, headers, host):
    class Session(Echo):
        socket_protocol = None
        response_headers = headers

    app = WebSocketHandler(lambda r, p: Session(), response_headers=[("X-Room", "caf\xe9")])
    options = {} if host is WebSocketServer else {"handler_class": UpgradeHandler}
    lines = headers_of(serve(app, cls=host, **options))
    assert lines[-2:] == ["X-Room: caf\xe9", "Set-Cookie: seen=1; HttpOnly"]


def test_headers_may_depend_on_the_request_and_repeat(serve):
    class Session(Echo):
        socket_protocol = None

        def __init__(self, name):
            self.response_headers = Headers()
            self.response_headers.add("Set-Cookie", f"name={name}")
            self.response_headers.add("Set-Cookie", "b=2")

    routes = Routes()
    routes.add(uri="/", handler=WebSocketHandler(lambda r, p: Session(r.args["name"])))

    def around(environ, start_response):
        return routes(environ, start_response)

    lines = headers_of(serve(around), path="/?name=ada")
    assert lines[-2:] == ["Set-Cookie: name=ada", "Set-Cookie: b=2"]


def test_the_short_form_takes_headers_too(serve):
    routes = Routes()

    @routes.websocket("/", response_headers=[COOKIE])
    def session(request, socket):
        socket.receive()

    assert headers_of(serve(routes))[-1] == "Set-Cookie: seen=1; HttpOnly"


@pytest.mark.parametrize(
    "headers, error",
    [
        ([("X", "a\r\nSet-Cookie: b=c")], ValueError),
        ([("X", "a\x00")], ValueError),
        ([("X", "\u20ac")], ValueError),
        ([("X: a\r\nY", "b")], ValueError),
        ([("", "b")], ValueError),
        ([("Connection", "close")], ValueError),
        ([("upgrade", "h2c")], ValueError),
        ([("Transfer-Encoding", "chunked")], ValueError),
        ([("Content-Length", "5")], ValueError),
        ([("Sec-WebSocket-Protocol", "chat")], ValueError),
        ([("sec-websocket-extensions", "x")], ValueError),
        ([("X", b"bytes")], TypeError),
        ([("X", "a", "b")], TypeError),
        (["X: a"], TypeError),
        (["XY"], TypeError),
        ("X: a", TypeError),
        (7, TypeError),
    ],
)
def test_headers_that_may_not_be_there_are_refused_where_they_are_given(headers, error):
    with pytest.raises(error, match="response_headers"):
        WebSocketHandler(producer, response_headers=headers)
    if isinstance(headers, list):
        with pytest.raises(error, match="response_headers"):

            class Session(Echo):
                response_headers = headers


def test_a_header_from_a_request_cannot_begin_another(serve, error_log):
    class Session(Echo):
        socket_protocol = None

        def __init__(self, value):
            self.response_headers = [("X", value)]

    app = WebSocketHandler(lambda r, p: Session(r.args["value"]))
    with Peer.connect(serve(app).address) as peer:
        response = peer.shake("/?value=a%0d%0aSet-Cookie:+b")
        assert response.status == 500
        assert "set-cookie" not in response.headers
    (record,) = error_log.take()
    assert "response_headers" in str(record.exc_info[1])


# -- options


def test_options_are_checked_when_they_are_set():
    with pytest.raises(TypeError, match="unknown option 'max_size'.*max_message_size"):
        WebSocketHandler(producer, max_size=5)
    with pytest.raises(ValueError, match="max_message_size"):
        WebSocketHandler(producer, max_message_size=0)


async def produce_async(request, protocols):
    return Echo()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Echo, r"lambda request, protocols: Echo\(\).*not the class Echo"),
        (Echo(), r"lambda request, protocols: Echo\(\)"),
        ("echo", r"a function \(request, protocols\), not 'echo'"),
        (None, "not None"),
        (lambda request: Echo(), r"called with \(request, protocols\), but .*lambda\(request\)"),
        (produce_async, "is 'async def': leave out 'async'"),
        (lambda request, socket: None, r"called with \(request, protocols\), in this order"),
        (lambda protocols, request: None, "in this order"),
    ],
)
def test_a_wrong_producer_is_reported_where_it_is_given(wrong, match):
    for _ in range(2):
        with pytest.raises(TypeError, match=match):
            WebSocketHandler(wrong)


def test_the_class_in_the_place_of_a_handler_is_reported():
    """As a view returns it, or as handler_class of a pywsgi server is called."""
    for arguments in ((), ({}, print), (None, ("127.0.0.1", 5), None)):
        with pytest.raises(
            TypeError, match=r"write WebSocketHandler\(producer\), .*UpgradeHandler"
        ):
            WebSocketHandler(*arguments)


def test_an_application_may_be_its_own_session():
    class Echo(WebSocketHandler, WebSocketSessionHandler):
        def __init__(self):
            super().__init__(lambda request, protocols: self)

        def handle_session(self, request, socket):
            socket.send(socket.receive())

    with greenws.testing.connect(Echo()) as socket:
        socket.send("x")
        assert socket.receive() == "x"


def test_a_session_that_derives_from_the_wrong_class_is_reported():
    with pytest.raises(TypeError, match="Chat has a handle_session.*WebSocketSessionHandler"):

        class Chat(WebSocketHandler):
            def handle_session(self, request, socket):
                pass


def test_a_producer_may_be_any_callable():
    class Producer:
        def __call__(self, request, protocols):
            return None

        def method(self, request, protocols, extra=1):
            return None

    for fitting in (Producer(), Producer().method, functools.partial(produce_named, "x")):
        assert WebSocketHandler(fitting).handler_producer is fitting


def produce_named(name, request, protocols):
    return None


def test_a_wrong_handle_session_is_reported_at_its_definition():
    with pytest.raises(TypeError, match=r"handle_session.*'async def'"):

        class Async(WebSocketSessionHandler):
            async def handle_session(self, request, socket):
                pass

    with pytest.raises(TypeError, match=r"handle_session.*'yield'"):

        class Generator(WebSocketSessionHandler):
            def handle_session(self, request, socket):
                yield

    with pytest.raises(TypeError, match=r"called with \(self, request, socket\)"):

        class Short(WebSocketSessionHandler):
            def handle_session(self, socket):
                pass

    with pytest.raises(TypeError, match="in this order"):

        class Swapped(WebSocketSessionHandler):
            def handle_session(self, socket, request):
                pass

    with pytest.raises(TypeError, match=r"socket_protocol of .*Several must be one str or None"):

        class Several(Echo):
            socket_protocol = ["a", "b"]

    with pytest.raises(TypeError, match="must be one str or None, not 13"):

        class Number(Echo):
            socket_protocol = 13


def test_a_handler_in_the_place_of_a_response_says_what_it_is(error_log):
    handler = WebSocketHandler(lambda request, protocols: None)
    with pytest.raises(AttributeError, match=r"no attribute 'status_code'; it is a WSGI app"):
        handler.status_code  # noqa: B018
    with pytest.raises(TypeError, match="cannot be iterated over; it is a WSGI application"):
        list(handler)
    (record,) = error_log.take()
    assert "cannot be iterated over" in record.getMessage()
    for arguments in ((), ({},)):
        with pytest.raises(TypeError, match=r"called with \(environ, start_response\)"):
            handler(*arguments)


def test_a_handle_session_of_any_kind_that_fits_is_taken():
    class Fitting(WebSocketSessionHandler):
        def handle_session(self, *args, **kwargs):
            pass

    class Static(WebSocketSessionHandler):
        @staticmethod
        def handle_session(request, socket):
            pass

    class ByClass(WebSocketSessionHandler):
        @classmethod
        def handle_session(cls, request, socket):
            pass

    assert Fitting() and Static() and ByClass()


# -- sockets


def test_fragments_come_and_go_one_by_one(serve):
    with Peer.open(
        serve(WebSocketHandler(producer)).address, Sec_WebSocket_Protocol="echo"
    ) as peer:
        peer.send(frame(TEXT, b"a", fin=False))
        assert peer.read_frame() == (False, TEXT, b"a")
        peer.send(frame(0, b"b"))
        assert peer.read_frame() == (True, 0, b"b")
