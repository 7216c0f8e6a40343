"""How a connection opens: in one read, in a few, or by way of the HTTP handler."""

from __future__ import annotations

import contextlib
import errno
import gc

import gevent
import pytest
from gevent import pywsgi
from gevent.event import Event
from werkzeug.exceptions import HTTPException, Unauthorized

from greenws import (
    Config,
    ConnectionClosed,
    Routes,
    UpgradeHandler,
    WebSocketHandler,
    WebSocketSessionHandler,
    keepalive,
)
from greenws.hub import polling
from greenws.hub.transport import Transport
from greenws.server.opening import is_direct

from ..support.forking import in_child
from ..support.limits import limit, pace, wait_until
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame, request

over_tls_too = pytest.mark.usefixtures("over_tls_too")


class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


def produce(request, protocols):
    return Echo()


class Lending(pywsgi.WSGIHandler):
    """As servers that know nothing of greenws, and hand over their sockets."""

    def get_environ(self):
        return super().get_environ() | {"its socket": self.socket}


def plain(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"plain"]


def handlers_alive():
    return [thing for thing in gc.get_objects() if type(thing) is UpgradeHandler]


def test_only_applications_with_nothing_around_their_sessions_are_direct():
    class Subclass(Routes):
        pass

    assert is_direct(Routes()) and is_direct(WebSocketHandler(produce))
    assert not is_direct(Subclass()) and not is_direct(plain)


@over_tls_too
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_an_empty_line_before_the_first_request_is_ignored(serve, direct, cut):
    """RFC 9112, section 2.2; whatever reads the request."""
    handler = WebSocketHandler(produce)
    server = serve(handler if direct else lambda environ, answer: handler(environ, answer))
    with Peer.connect(server.address) as peer:
        data = b"\r\n" + request("/")
        if cut:
            peer.send(data[:cut])
            gevent.sleep(0.01)
        peer.send(data[cut:])
        assert peer.read_response().status == 101


def test_a_handler_that_never_waits_for_input_learns_of_a_close(serve, monkeypatch):
    """Its request came with the connection, so nothing has waited for input before it, either."""
    monkeypatch.setattr(keepalive, "_POLL_INPUT_INTERVAL", 1e6)  # keepalive does not find it
    monkeypatch.setattr(polling, "_TICK", 0.01)
    ended = Event()

    class Ticker(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    socket.send("tick")
                    gevent.sleep(0.01)
            ended.set()

    server = serve(WebSocketHandler(lambda request, protocols: Ticker(), ping_interval=None))
    with Peer.connect(server.address) as peer:
        peer.send(request("/"))
        assert peer.read_response().status == 101
        assert peer.read_frame()[1] == TEXT
        peer.send(close_frame())
        assert ended.wait(limit())


@pytest.mark.parametrize("proxies", [0, 1])
@pytest.mark.parametrize("read_early", [False, True])
def test_the_environ_of_a_session_is_made_when_it_is_read(serve, read_early, proxies):
    """What a session keeps of its request are bytes; what it reads is what the producer read."""
    seen = []
    routes = Routes()

    def read(request):
        environ = request.environ
        assert request.environ is environ
        websocket = ("greenws.upgrade",)
        return {name: environ[name] for name in sorted(environ) if name not in websocket}

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            assert socket.request is request
            socket.receive()
            seen.append(read(request))
            seen.append((request.path, request.args["a"], request.headers["X-Name"]))
            request.environ["mine"] = 1
            assert socket.request.environ["mine"] == 1

    def produce(request, protocols):
        if read_early:
            seen.append(read(request))
            request.environ["of the producer"] = "kept"
        return Session()

    routes.add(uri="/room/<name>", handler=WebSocketHandler(produce))
    inner = Routes()
    inner.add(uri="/room/*", handler=WebSocketHandler(produce))
    server = serve(routes if proxies else inner, trusted_proxies=proxies)
    headers = {"X_Name": "caf\xe9", "X_Forwarded_For": "192.0.2.1"}
    with Peer.connect(server.address) as peer:
        peer.send(request("/room/b%C3%A4r?a=1", **headers))
        assert peer.read_response().status == 101
        peer.send(frame(TEXT, b"go on"))
        assert peer.read_close(answer=True)[0] == 1000
    *early, late, parts = seen
    assert parts[1:] == ("1", "caf\xe9")
    assert late["REMOTE_ADDR"] == ("192.0.2.1" if proxies else "127.0.0.1")
    assert late["wsgi.websocket_version"] == "13" and late["wsgi.input"].read() == b""
    if proxies:
        assert (parts[0], late["wsgiorg.routing_args"]) == ("/room/bär", ((), {"name": "bär"}))
    else:
        assert (parts[0], late["SCRIPT_NAME"]) == ("/bär", "/room")
    for environ in early:
        assert late == {**environ, "of the producer": "kept"}


def test_an_idle_session_keeps_no_environ(serve):
    routes = Routes()
    entered = Event()

    @routes.websocket("/<name>")
    def session(request, socket, name):
        entered.set()
        socket.receive()
        socket.send(f"{name} {request.environ['PATH_INFO']}")

    server = serve(routes)
    with Peer.open(server.address, "/here") as peer:
        assert entered.wait(limit())
        gc.collect()
        for thing in gc.get_objects():
            if type(thing) is dict and "QUERY_STRING" in thing:
                assert thing.get("PATH_INFO") != "/here"
        peer.send(frame(TEXT, b"go on"))
        assert peer.read_frame() == (True, TEXT, b"here /here")


@over_tls_too
@pytest.mark.parametrize("step", [1000, 100, 7])
def test_a_head_in_pieces_opens_a_session_that_gets_the_bytes_after_it(serve, step):
    gc.collect()  # the handlers of other tests
    server = serve(WebSocketHandler(produce))
    data = request() + frame(TEXT, b"early")
    with Peer.connect(server.address) as peer:
        for start in range(0, len(data), step):
            peer.send(data[start : start + step])
            gevent.sleep(0)
        assert peer.read_response().status == 101
        assert peer.read_frame() == (True, TEXT, b"early")
        assert not handlers_alive()
        peer.send(close_frame())
        assert peer.read_close()[0] == 1000
    wait_until(lambda: not server.clients)


def test_a_session_has_one_greenlet(serve):
    greenlets = []

    class Session(Echo):
        def handle_session(self, request, socket):
            greenlets.append(gevent.getcurrent())
            super().handle_session(request, socket)

    def produce(request, protocols):
        greenlets.append(gevent.getcurrent())
        return Session()

    with Peer.open(serve(WebSocketHandler(produce)).address):
        wait_until(lambda: len(greenlets) == 2)
    assert greenlets[0] is greenlets[1]


@over_tls_too
def test_a_refusal_asks_the_producer_once_and_ends_the_connection(serve):
    asked = []

    def produce(request, protocols):
        asked.append(request.path)
        if len(asked) == 1:
            raise Unauthorized("who are you?")
        return Echo()

    server = serve(WebSocketHandler(produce))
    with Peer.connect(server.address) as peer:
        response = peer.shake("/first")
        assert (response.status, response.headers["connection"]) == (401, "close")
        assert asked == ["/first"]
        assert peer.at_end()
    with Peer.connect(server.address) as peer:
        assert peer.shake("/second").status == 101
    assert asked == ["/first", "/second"]
    assert server.stats.refused == {"application": 1}


@over_tls_too
def test_whatever_is_no_handshake_is_answered_as_http(serve):
    routes = Routes()
    routes.add(uri="/plain", handler=plain)
    routes.add(uri="/socket", handler=WebSocketHandler(produce))
    with Peer.connect(serve(routes).address) as peer:
        peer.send(b"GET /plain HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert [peer.read_response().body for _ in range(2)] == [b"plain"] * 2
        peer.send(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peer.read_response().status == 404
        peer.send(b"GET /socket HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peer.read_response().status == 426
        assert peer.shake("/socket").status == 101


@pytest.mark.parametrize("path, status", [("/plain", 200), ("/nowhere", 404), ("/page", 200)])
def test_an_upgrade_that_is_answered_as_http_ends_the_connection(serve, path, status):
    routes = Routes()
    routes.add(uri="/plain", handler=plain)
    routes.add(uri="/page", handler=lambda *args: plain(*args))
    server = serve(routes)
    with Peer.connect(server.address) as peer:
        peer.send(request(path) + frame(TEXT, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
        response = peer.read_response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)
    assert server.stats.refused == {"application": 1}


def test_routes_may_contain_routes(serve):
    seen = []

    def produce(request, protocols):
        seen.append((request.root_path, request.path, request.environ["wsgiorg.routing_args"][1]))
        return Echo()

    gc.collect()  # the handlers of other tests
    inner, outer = Routes(), Routes()
    inner.add(uri="/<room>", handler=WebSocketHandler(produce))
    outer.add(uri="/chat/*", handler=inner)
    with Peer.open(serve(outer).address, "/chat/lobby"):
        wait_until(lambda: not handlers_alive())
    assert seen == [("/chat", "/lobby", {"room": "lobby"})]


@over_tls_too
@pytest.mark.parametrize("part", [b"", b"GET / HTTP/1.1\r\nHos"])
def test_a_head_that_is_late_gets_the_same_as_from_the_http_handler(serve, part):
    server = serve(
        WebSocketHandler(produce), config=Config(handshake_timeout=pace(0.3)), error_log=None
    )
    with Peer.connect(server.address) as peer:
        peer.send(part)
        if part:
            assert peer.read_response().status == 408
        assert peer.at_end()


def test_a_client_that_leaves_before_its_head_is_whole_leaves_nothing(serve):
    server = serve(WebSocketHandler(produce))
    with Peer.connect(server.address) as peer:
        peer.send(b"GET / HT")
    wait_until(lambda: server.admission.open == 0)


def test_a_greenlet_that_is_killed_in_the_producer_closes_the_connection(serve):
    waiting = []

    def produce(request, protocols):
        waiting.append(gevent.getcurrent())
        Event().wait()

    server = serve(WebSocketHandler(produce))
    with Peer.connect(server.address) as peer:
        peer.send(request())
        wait_until(lambda: waiting)[0].kill()
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)


@over_tls_too
@pytest.mark.parametrize("ends", ["accepts", "refuses", "aborts", "fails"])
@pytest.mark.parametrize("kind", ["direct", "wsgi", "lends its socket"])
def test_a_child_that_is_forked_in_the_producer_leaves_the_answer_to_the_parent(
    serve, error_log, hub_errors, kind, ends
):
    go = Event()
    asked = []

    def produce(request, protocols):
        asked.append("waits")
        go.wait()
        asked.append("answers")
        if ends == "aborts":
            raise Unauthorized
        if ends == "fails":
            raise RuntimeError("broken")
        return Echo() if ends == "accepts" else None

    application = handler = WebSocketHandler(produce)
    options = {}
    if kind == "wsgi":

        def application(environ, start_response):
            return handler(environ, start_response)

    if kind == "lends its socket":

        def application(environ, start_response):
            lent = environ | {"werkzeug.socket": environ["its socket"]}
            return handler(lent, start_response)

        options = {"cls": pywsgi.WSGIServer, "handler_class": Lending}

    def child():
        go.set()
        wait_until(lambda: asked == ["waits", "answers"])
        for _ in range(20):
            gevent.sleep(0)

    with Peer.connect(serve(application, **options).address) as peer:
        peer.send(request())
        wait_until(lambda: asked)
        in_child(child)
        assert peer.is_silent(0.0)
        go.set()
        status = peer.read_response().status
        if ends == "accepts":
            assert status == 101
            peer.send(frame(TEXT, b"hello"))
            assert peer.read_frame()[1:] == (TEXT, b"hello")
        else:
            assert status == {"refuses": 400, "aborts": 401, "fails": 500}[ends]
    error_log.take()


@over_tls_too
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("waits_in", ["the producer", "the session"])
def test_connections_of_the_parent_do_not_count_in_a_child(serve, waits_in, direct):
    go = Event()
    waiting = []

    def wait():
        waiting.append(gevent.getcurrent())
        go.wait()
        waiting.pop()

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            wait()

    def produce(request, protocols):
        if waits_in == "the session":
            return Session()
        wait()
        return None

    handler = WebSocketHandler(produce)
    server = serve(
        handler if direct else lambda environ, answer: handler(environ, answer),
        config=Config(max_connections_per_address=2),
        trusted_proxies=1,
    )

    def child():
        admission = server.admission
        assert admission.claim("192.0.2.1")
        copied = waiting[0]
        go.set()
        wait_until(lambda: copied.dead)
        assert server.admission is admission
        assert (admission.open, admission.busy) == (0, 0)
        assert admission._addresses == {"192.0.2.1": 1}

    with Peer.connect(server.address) as peer:
        peer.send(request("/", X_Forwarded_For="192.0.2.1"))
        wait_until(lambda: waiting)
        in_child(child)
        assert server.admission.open == server.admission.busy == 1
        go.set()
        assert peer.read_response().status == (101 if waits_in == "the session" else 400)
    wait_until(lambda: server.admission.open == 0)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("times", [1, 2])  # twice: what the client sends after the 500, too
def test_a_socket_that_cannot_be_watched_gets_500_and_keeps_no_place(
    serve, error_log, hub_errors, monkeypatch, direct, times
):
    """For example, beyond the system's limit of watches for one user."""

    class Full(polling.EpollPoller):
        def add(self, waiter):
            nonlocal refusals
            if refusals and type(waiter) is Transport:
                refusals -= 1
                raise OSError(errno.ENOSPC, "no space left on device")
            polling.EpollPoller.add(self, waiter)

    refusals = 0
    handler = WebSocketHandler(produce)
    server = serve(
        handler if direct else lambda environ, answer: handler(environ, answer),
        config=Config(max_connections_per_address=1),
        trusted_proxies=1,
    )
    poller = Full()
    monkeypatch.setattr(gevent.get_hub(), "_greenws_poller", poller, raising=False)
    for status in (500, 500, 101):
        refusals = times if status == 500 else 0
        with Peer.connect(server.address) as peer:
            assert peer.shake("/", X_Forwarded_For="192.0.2.1").status == status
        wait_until(lambda: server.admission.open == 0)
    poller.close()
    assert len(error_log.take()) == 2


def test_the_limits_of_the_handshake_hold_for_the_transport_not_those_of_the_accept(serve):
    limits = []

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            socket.send(bytes(1 << 24))
            limits.append(socket._transport.backlog)

    server = serve(WebSocketHandler(lambda r, p: Session()), config=Config(write_high_water=1))
    with Peer.connect(server.address) as peer:
        wait_until(lambda: server.admission.open)
        server.config = Config(write_high_water=1 << 25)
        peer.send(request())
        wait_until(lambda: limits)
    assert limits[0] > 0


def test_the_handlers_options_hold_for_the_transport_too(serve):
    ended = []

    class Flood(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            try:
                while True:
                    socket.send(bytes(1 << 16))
            finally:
                ended.append(True)

    server = serve(WebSocketHandler(lambda r, p: Flood(), write_timeout=0.05, write_high_water=1))
    with Peer.open(server.address):
        wait_until(lambda: ended)


def test_behind_a_proxy_the_client_is_the_one_that_it_names(serve):
    addresses = []

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            addresses.append(socket.remote_address)

    config = Config(max_connections_per_address=1)
    server = serve(WebSocketHandler(lambda r, p: Session()), config=config, trusted_proxies=1)
    for _ in range(2):
        with Peer.open(server.address, X_Forwarded_For="192.0.2.1") as peer:
            assert peer.read_frame()[1] == CLOSE
            peer.send(close_frame())
        wait_until(lambda: server.admission.open == 0)
    assert addresses == [("192.0.2.1", 0)] * 2


def test_an_exception_that_is_no_refusal_does_not_ask_twice(serve, error_log):
    asked = []

    def produce(request, protocols):
        asked.append(True)
        raise RuntimeError("broken")

    with Peer.connect(serve(WebSocketHandler(produce)).address) as peer:
        assert peer.shake().status == 500
    assert asked == [True]
    assert len(error_log.take()) == 1


def test_what_routes_raise_is_for_http_to_answer():
    with pytest.raises(HTTPException):
        Routes().match(
            {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_HOST": "a"}
            | {"wsgi.url_scheme": "http", "SERVER_NAME": "a", "SERVER_PORT": "80"}
        )


FORMS = {
    "plain": request(),
    "lower": request().replace(b"Sec-WebSocket-Key", b"sec-websocket-key"),
    "query": request("/?a=%20b"),
    "browser": request(
        Host="a", Origin="http://a", Cookie="a=b", Connection="keep-alive, Upgrade", User_Agent="b"
    ),
    "offers": request(Sec_WebSocket_Protocol="a, b", Sec_WebSocket_Extensions="permessage-deflate"),
    "escaped": request("/%2F/.."),
    "repeated": request(Sec_WebSocket_Protocol="a\r\nSec-WebSocket-Protocol: b"),
    "url": request("http://a/", Host="a"),
    "tokens": request(Connection="foo,upgrade", Upgrade="h2c, websocket"),
    "padded": request(Sec_WebSocket_Version=" 13 "),
    "length": request(Content_Length="0"),
}


class Subclass(WebSocketHandler):
    """Not opened by the server itself."""


@pytest.mark.parametrize("form", FORMS)
def test_the_producer_and_the_session_see_the_environ_of_any_server(serve, form):
    seen = []

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            seen.append(request.environ)

    def produce(request, protocols):
        assert request.environ["greenws.upgrade"].socket is None
        seen.append(request.environ)
        seen.append((protocols, request.path, request.environ.copy()))
        return Session()

    def open_session(application):
        routes = Routes()
        routes.add(uri="*", handler=application)
        for path in ("/", "//.."):
            routes.add(uri=path, handler=application)
        with Peer.connect(serve(routes).address) as peer:
            peer.send(FORMS[form])
            assert peer.read_response().status == 101
            assert peer.read_close(answer=True)[0] == 1000
        first, (protocols, path, copy), last = seen
        seen.clear()
        assert first is last
        # The session of the other is inside the request.
        assert ("greenws.upgrade" in last) is isinstance(application, Subclass)
        ours = {"greenws.upgrade", "wsgi.input", "wsgi.websocket", "REMOTE_PORT", "SERVER_PORT"}
        return protocols, path, {key: copy[key] for key in copy.keys() - ours}, copy.keys()

    assert open_session(WebSocketHandler(produce)) == open_session(Subclass(produce))


@pytest.mark.parametrize(
    "data, hosts, status",
    [
        (request(Content_Length="5"), None, 400),
        (request(Transfer_Encoding="chunked"), None, 400),
        (request(version="1.0"), None, 400),
        (request(Host="a", Origin="http://b"), None, 403),
        (request(Host="b"), ["a"], 421),
    ],
)
def test_a_handshake_that_is_refused_does_not_ask_the_producer(serve, data, hosts, status):
    asked = []
    routes = Routes()
    routes.add(uri="/", handler=WebSocketHandler(lambda *args: asked.append(args)))
    with Peer.connect(serve(routes, config=Config(allowed_hosts=hosts)).address) as peer:
        peer.send(data)
        assert peer.read_response().status == status
        assert peer.at_end()
    assert not asked
