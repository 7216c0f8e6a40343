"""The upgrade, over real connections: what is answered, what is not, and what is left open."""

from __future__ import annotations

import gc
import socket as native_socket
import weakref

import gevent
import gevent.event
import gevent.pool
import gevent.socket
import pytest
from gevent import pywsgi

from greenws import (
    Config,
    ConnectionClosed,
    Routes,
    UpgradeHandler,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
)
from greenws.protocol.handshake import is_upgrade

from ..support.limits import again_after_standstill, limit, wait_until
from ..support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame, request

over_tls_too = pytest.mark.usefixtures("over_tls_too")


class Session(WebSocketSessionHandler):
    def __init__(self, function, protocol=None):
        self.function = function
        self.socket_protocol = protocol

    def handle_session(self, request, socket):
        self.function(request, socket)


def echo(request, socket):
    for message in socket:
        socket.send(message)


def handler(function, **options):
    return WebSocketHandler(lambda request, protocols: Session(function), **options)


def plain(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


# -- the handshake on the wire


@over_tls_too
def test_the_upgrade_is_answered_as_the_rfc_says(serve):
    with Peer.connect(serve(handler(echo)).address) as peer:
        response = peer.shake()
        assert response.status == 101
        assert response.headers == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        }


@pytest.mark.parametrize(
    ("status", "line", "headers"),
    [
        (400, "Sec-WebSocket-Key", {"Sec_WebSocket_Key": "too short"}),
        (400, "Missing Sec-WebSocket-Key header", {"Sec_WebSocket_Key": None}),
        (426, "must be 13, not '8'", {"Sec_WebSocket_Version": "8"}),
        (
            426,
            "Missing Sec-WebSocket-Version header; it must be 13",
            {"Sec_WebSocket_Version": None},
        ),
        (400, "Connection header must contain", {"Connection": "keep-alive"}),
        (400, "must not have a body", {"Content_Length": "5"}),
        (400, "is not a token", {"Sec_WebSocket_Protocol": "a b"}),
        (400, "duplicate", {"Sec_WebSocket_Protocol": "a, a"}),
        (400, "Missing Host header", {"Host": None}),
        (426, "This is a WebSocket endpoint", {"Upgrade": None, "Connection": None}),
        (405, "must be a GET request, not POST", {"method": "POST"}),
        (400, "HTTP/1.1", {"version": "1.0"}),
    ],
)
def test_a_refused_handshake_says_what_was_wrong(serve, status, line, headers):
    with Peer.connect(serve(handler(echo)).address) as peer:
        response = peer.shake(**headers)
        assert response.status == status
        assert line in response.body.decode()
        assert response.body.count(b"\n") == 1
        if status == 426:
            assert response.headers["sec-websocket-version"] == "13"
            assert response.headers["upgrade"] == "websocket"
            assert "upgrade" in response.headers["connection"].lower()
        if status == 405:
            assert response.headers["allow"] == "GET"


def test_what_no_application_could_accept_does_not_reach_it(serve):
    called = []
    server = serve(lambda environ, start_response: called.append(1) or [])
    with Peer.connect(server.address) as peer:
        assert peer.shake(Sec_WebSocket_Key="x").status == 400
        assert peer.at_end()
    assert called == []


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade"])
@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket"])
def test_upgrade_headers_are_token_lists(serve, connection, upgrade):
    with Peer.connect(serve(handler(echo)).address) as peer:
        assert peer.shake(Connection=connection, Upgrade=upgrade).status == 101


def test_other_upgrades_are_not_ours():
    environ = {"HTTP_UPGRADE": "h2c", "HTTP_CONNECTION": "Upgrade"}
    assert not is_upgrade(environ)


# -- plain HTTP


@over_tls_too
def test_the_same_port_goes_on_serving_http(serve):
    routes = Routes()
    routes.add(uri="/ws", handler=handler(echo))
    routes.add(uri="/", handler=plain)
    with Peer.connect(serve(routes).address) as peer:
        for _ in range(3):
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            response = peer.read_response()
            assert (response.status, response.body) == (200, b"plain")
        assert peer.shake("/ws").status == 101  # on the same connection
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")


@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "404 Not Found", "302 Found", "200 OK", "500 Oops"]
)
def test_an_application_may_answer_an_upgrade_with_http(serve, status):
    def app(environ, start_response):
        start_response(status, [("Location", "/login"), ("Content-Length", "4")])
        return [b"body"]

    with Peer.connect(serve(app).address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == (int(status[:3]), b"body")
        assert response.headers["location"] == "/login"
        assert response.headers["connection"] == "close"
        assert peer.at_end()


def test_an_application_may_write_its_http_answer(serve):
    def app(environ, start_response):
        write = start_response("403 Forbidden", [])
        write(b"no")
        return []

    with Peer.connect(serve(app).address) as peer:
        assert peer.shake().status == 403


def test_an_error_before_the_upgrade_is_a_500(serve, hub_errors):
    def app(environ, start_response):
        raise LookupError("before")

    server = serve(app)
    with Peer.connect(server.address) as peer:
        response = peer.shake()
        assert response.status == 500
        assert b"before" not in response.body
    assert "LookupError: before" in hub_errors.take()


# -- after 101


@over_tls_too
def test_frames_after_the_handshake_in_one_segment(serve):
    behind = frame(TEXT, b"one") + frame(TEXT, b"two") + frame(BINARY, b"x" * 3000)
    with Peer.open(serve(handler(echo)).address, early=behind + frame(TEXT, b"cut")[:4]) as peer:
        assert peer.read_frame() == (True, TEXT, b"one")
        assert peer.read_frame() == (True, TEXT, b"two")
        assert peer.read_frame() == (True, BINARY, b"x" * 3000)
        peer.send(frame(TEXT, b"cut")[4:])
        assert peer.read_frame() == (True, TEXT, b"cut")


@over_tls_too
def test_more_after_the_handshake_than_the_server_reads_ahead(serve):
    behind = frame(BINARY, b"y" * 200_000) + frame(TEXT, b"end")
    with Peer.connect(serve(handler(echo)).address) as peer:
        sending = gevent.spawn(peer.send, request() + behind)
        assert peer.read_response().status == 101
        assert peer.read_frame() == (True, BINARY, b"y" * 200_000)
        assert peer.read_frame() == (True, TEXT, b"end")
        sending.get()


@over_tls_too
@pytest.mark.parametrize("body", [[b"HTTP"], [], None, "generator", ["not bytes"]])
def test_what_an_application_returns_after_an_upgrade_is_ignored(serve, body):
    closed = []

    def generate():
        yield b"HTTP"
        yield b"more"

    class Body(list):
        def close(self):
            closed.append(True)

    def app(environ, start_response):
        list(handler(echo)(environ, start_response))
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"HTTP")
        return generate() if body == "generator" else body and Body(body)

    with Peer.open(serve(app).address) as peer:
        peer.send(frame(TEXT, b"x") + close_frame())
        assert peer.read_frame() == (True, TEXT, b"x")
        assert peer.read_close() == (1000, b"")
    if isinstance(body, list) and body:
        assert wait_until(lambda: closed) == [True]


@over_tls_too
def test_a_session_in_a_generator(serve):
    def app(environ, start_response):
        yield from handler(echo)(environ, start_response)

    with Peer.open(serve(app).address) as peer:
        peer.send(frame(TEXT, b"x") + close_frame())
        assert peer.read_frame() == (True, TEXT, b"x")
        assert peer.read_close() == (1000, b"")


@over_tls_too
def test_nothing_is_read_as_http_after_the_session(serve):
    called = []

    def app(environ, start_response):
        called.append(environ["PATH_INFO"])
        return handler(lambda request, socket: None)(environ, start_response)

    with Peer.open(serve(app).address, "/first") as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe8")
        peer.send(close_frame() + b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.at_end()
    assert called == ["/first"]


@over_tls_too
def test_wsgi_input_of_an_upgrade_is_empty(serve):
    def app(environ, start_response):
        assert environ["wsgi.input"].read() == b""
        return handler(echo)(environ, start_response)

    with Peer.open(serve(app).address, early=frame(TEXT, b"not a body")) as peer:
        assert peer.read_frame() == (True, TEXT, b"not a body")


@over_tls_too
@again_after_standstill(0.1)
def test_the_close_arrives_although_the_client_goes_on_sending(serve):
    def refuse(request, socket):
        socket.receive()
        socket.close(4000, "enough")

    server = serve(handler(refuse, close_timeout=0.5))
    for _ in range(5):
        with Peer.open(server.address) as peer:
            flood = gevent.spawn(_flood, peer)
            assert peer.read_frame() == (True, CLOSE, b"\x0f\xa0enough")
            flood.kill()


def _flood(peer):
    data = frame(BINARY, b"x" * 10_000)
    try:
        while True:
            peer.send(data)
    except OSError:
        pass


@over_tls_too
def test_the_close_of_a_protocol_error_arrives_although_more_was_sent(serve):
    server = serve(handler(echo))
    for _ in range(5):
        with Peer.open(server.address) as peer:
            peer.send(frame(3) + frame(BINARY, b"x" * 300_000))
            code, reason = peer.read_close()
            assert code == 1002 and b"opcode 3" in reason


# -- errors


@over_tls_too
def test_an_exception_closes_with_1011_and_is_logged_once(serve, error_log, capsys):
    def fail(request, socket):
        socket.receive()
        raise LookupError("in the handler")

    with Peer.open(serve(handler(fail)).address, "/ws") as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, CLOSE, b"\x03\xf3")
        peer.send(close_frame(1011))
        assert peer.at_end()
    (record,) = wait_until(error_log.take)
    assert record.exc_info and "in the handler" in str(record.exc_info[1])
    assert "/ws" in record.getMessage()
    captured = capsys.readouterr()
    assert captured.err.count("Traceback") <= 1  # logging's own last resort


@over_tls_too
@pytest.mark.parametrize("end", ["close", "lost", "error"])
def test_connection_closed_is_a_normal_end(serve, end):
    done = []

    def session(request, socket):
        try:
            while True:
                socket.receive()
        except ConnectionClosed as error:
            done.append(error.code)
            raise

    with Peer.open(serve(handler(session)).address) as peer:
        if end == "close":
            peer.send(close_frame(4000))
            peer.read_close()
        elif end == "lost":
            peer.close()
        else:
            peer.send(b"\xff\xff")
            peer.read_close()
        wait_until(lambda: done)
    assert done == [{"close": 4000, "lost": 1006, "error": 1002}[end]]


def test_a_gevent_timeout_that_escapes_is_an_error(serve, error_log):
    def session(request, socket):
        with gevent.Timeout(0.01):
            socket.receive()

    with Peer.open(serve(handler(session)).address) as peer:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xf3")
        peer.send(close_frame(1011))
    assert len(wait_until(error_log.take)) == 1


@over_tls_too
def test_a_killed_session_closes_with_going_away(serve):
    greenlets = []

    def session(request, socket):
        greenlets.append(gevent.getcurrent())
        socket.receive()

    with Peer.open(serve(handler(session)).address) as peer:
        wait_until(lambda: greenlets)[0].kill()
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe9")


def test_an_http_response_that_was_begun_is_not_upgraded(serve, hub_errors):
    def app(environ, start_response):
        start_response("401 Unauthorized", [("Content-Length", "2")])(b"no")
        environ["wsgi.websocket"].send("too late")
        return []

    with Peer.connect(serve(app).address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == (401, b"no")
        assert peer.at_end()
    assert "too late to upgrade" in hub_errors.take()


@over_tls_too
def test_a_session_leaves_no_reference_cycle(serve):
    sockets = []

    def session(request, socket):
        sockets.append(weakref.ref(socket))
        socket.receive()

    server = serve(handler(session))
    gc.collect()
    gc.disable()
    try:
        with Peer.open(server.address) as peer:
            peer.send(close_frame())
            peer.read_close()
        wait_until(lambda: sockets[0]() is None)
    finally:
        gc.enable()


# -- a session that has left its request


def handlers_alive():
    return [thing for thing in gc.get_objects() if type(thing) is UpgradeHandler]


def in_routes(application):
    routes = Routes()
    routes.add(uri="/*", handler=application)
    return routes


@pytest.mark.parametrize("wrap", [lambda app: app, in_routes])
def test_an_idle_session_keeps_nothing_of_http(serve, wrap):
    gc.collect()  # the handlers of other tests
    server = serve(wrap(handler(echo)))
    with Peer.open(server.address, "/a?b=c") as peer:
        wait_until(lambda: not handlers_alive())
        assert [client.address for client in server.clients.values()]
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
    wait_until(lambda: not server.clients)


@pytest.mark.parametrize("wrap", [lambda app: lambda e, s: app(e, s), lambda app: Middleware(app)])
def test_under_a_middleware_the_session_runs_in_the_request(serve, wrap):
    gc.collect()  # the handlers of other tests
    contexts = []

    def session(request, socket):
        contexts.append(Middleware.inside)
        socket.receive()

    with Peer.open(serve(in_routes(wrap(handler(session)))).address):
        wait_until(lambda: contexts)
        assert handlers_alive()


class Middleware(Routes):
    """More than its base does, around each request."""

    inside = 0

    def __init__(self, application):
        super().__init__()
        self.add(uri="/*", handler=application)

    def __call__(self, environ, start_response):
        Middleware.inside += 1
        try:
            return super().__call__(environ, start_response)
        finally:
            Middleware.inside -= 1


def test_a_subclass_of_routes_is_a_middleware(serve):
    seen = []

    def session(request, socket):
        seen.append(Middleware.inside)

    with Peer.open(serve(Middleware(handler(session))).address) as peer:
        assert peer.read_frame()[1] == CLOSE
    assert seen == [1]


def test_the_request_of_a_session_stays_usable(serve):
    seen = []

    def session(request, socket):
        assert socket.request is request
        gevent.sleep(0)
        seen.append((request.path, request.args["b"], request.headers["X-A"], request.remote_addr))
        seen.append((request.data, request.method, request.host, hasattr(request, "nonsense")))

    with Peer.open(serve(handler(session)).address, "/a?b=c", X_A="1") as peer:
        assert peer.read_frame()[1] == CLOSE
    assert seen == [("/a", "c", "1", "127.0.0.1"), (b"", "GET", "example.com", False)]


@pytest.mark.parametrize("size", [1, 2])
def test_a_session_takes_its_place_in_the_pool(serve, size):
    pool = gevent.pool.Pool(size)
    server = serve(handler(echo), spawn=pool)
    peers = [Peer.open(server.address) for _ in range(size)]
    assert len(pool) == size
    with Peer.connect(server.address) as waiting:
        waiting.send(request())
        assert waiting.is_silent()
        peers[0].send(close_frame())
        assert peers[0].read_close()[0] == 1000
        peers[0].close()
        assert waiting.read_response().status == 101
        assert len(pool) == size
    for peer in peers:
        peer.close()
    wait_until(lambda: len(pool) == 0)
    assert pool.free_count() == size


def test_stop_kills_the_sessions_of_a_pool(serve):
    ended = []

    def session(request, socket):
        try:
            gevent.sleep(60)
        except gevent.GreenletExit:
            ended.append(True)
            raise

    server = serve(handler(session), spawn=5)
    with Peer.open(server.address) as peer:
        wait_until(lambda: server.clients)
        server.stop(timeout=0.05)
        assert ended == [True]
        assert peer.read_frame()[1] == CLOSE


def test_a_raw_greenlet_may_run_sessions(serve):
    server = serve(handler(echo), spawn=gevent.spawn_raw)
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
    wait_until(lambda: not server.clients)


def test_without_spawn_a_request_that_is_there_already_is_answered_in_the_hub(serve):
    greenlets = []

    def app(environ, start_response):
        greenlets.append(gevent.getcurrent())
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = serve(app, spawn=None)
    client = native_socket.create_connection(server.address)  # before the hub may accept it
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    client.setblocking(False)
    with Peer(gevent.socket.socket(fileno=client.detach())) as peer:
        assert peer.read_response().body == b"ok"
        assert peer.at_end()
    assert greenlets == [gevent.get_hub()]


def test_a_connection_that_is_killed_before_it_is_served_is_closed(serve):
    ran = []
    server = serve(handler(lambda request, socket: ran.append(True)))
    spawn = server._spawn

    def spawn_and_kill(*args):
        spawn(*args).kill(block=False)

    server._spawn = spawn_and_kill
    with Peer.connect(server.address) as peer:
        assert peer.at_end()
    assert ran == []


def test_clients_of_the_server_can_be_sent_to(serve):
    server = serve(handler(echo))
    with Peer.open(server.address, "/here") as peer:
        (client,) = wait_until(lambda: list(server.clients.values()))
        client.ws.send("to everybody")
        assert peer.read_frame() == (True, TEXT, b"to everybody")
        assert client.ws.path == "/here"
        assert client.ws.handler.active_client is client
        assert client.ws.handler.server.clients is server.clients
        assert client.ws.handler.client_address == client.address


# -- the server


@over_tls_too
def test_stop_closes_every_session_with_1001(serve):
    ended = []

    def session(request, socket):
        for _ in socket:
            pass
        ended.append(socket.close_code)

    server = serve(handler(session))
    peers = [Peer.open(server.address) for _ in range(20)]
    stopping = gevent.spawn(server.stop, 5)
    for peer in peers:
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe9")
        peer.send(close_frame(1001))
        assert peer.at_end()
        peer.close()
    stopping.get()
    assert ended == [1001] * 20
    with pytest.raises(OSError):
        Peer.connect(server.address)


@over_tls_too
def test_stop_does_not_wait_for_ever(serve):
    server = serve(handler(lambda request, socket: socket.receive(), close_timeout=0.3))
    with Peer.open(server.address) as peer:
        server.stop(timeout=0.05)
        assert peer.read_frame()[1] == CLOSE


@over_tls_too
def test_config_of_the_server_and_of_the_handler(serve):
    routes = Routes()
    routes.add(uri="/server", handler=handler(echo))
    routes.add(uri="/handler", handler=handler(echo, max_message_size=10))
    server = serve(routes, config=Config(max_message_size=5))
    for path, size in (("/server", 5), ("/handler", 10)):
        with Peer.open(server.address, path) as peer:
            peer.send(frame(BINARY, b"x" * size) + frame(BINARY, b"x" * (size + 1)))
            assert len(peer.read_frame()[2]) == size
            assert peer.read_close()[0] == 1009


def test_any_pywsgi_server_takes_the_handler_class(serve):
    server = serve(handler(echo), cls=pywsgi.WSGIServer, handler_class=UpgradeHandler)
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
        assert len(server.clients) == 1
    wait_until(lambda: not server.clients)


def test_http_requests_are_logged_as_pywsgi_does(serve):
    import io

    log = io.StringIO()
    with Peer.connect(serve(plain, log=log).address) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.read_response()
    assert '"GET /page HTTP/1.1" 200' in wait_until(log.getvalue)


def test_a_unix_socket(serve, tmp_path):
    from gevent import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "greenws"))
    listener.listen()
    server = WebSocketServer(listener, handler(echo), log=None)
    server.start()
    peers = []
    for _ in range(2):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tmp_path / "greenws"))
        peers.append(Peer(sock))
        assert peers[-1].shake().status == 101
    for peer in peers:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
        peer.close()
    wait_until(lambda: not server.clients)
    server.stop()


# -- TLS


def tls_peer(server, trusting, path="/", early=b""):
    peer = Peer.connect(server.address)
    peer.sock = trusting.wrap_socket(peer.sock, server_hostname="127.0.0.1")
    assert peer.shake(path, early).status == 101
    return peer


def test_the_data_path_over_tls(serve, certificates):
    served, trusting = certificates
    server = serve(handler(echo), ssl_context=served)
    with tls_peer(server, trusting, early=frame(TEXT, b"behind")) as peer:
        assert peer.read_frame() == (True, TEXT, b"behind")
        peer.send(frame(PING, b"p"))
        assert peer.read_frame() == (True, PONG, b"p")
        for size in (0, 1, 125, 126, 16_384, 16_385, 70_000, 1_000_000):
            sending = gevent.spawn(peer.send, frame(BINARY, b"z" * size))
            assert peer.read_frame() == (True, BINARY, b"z" * size)
            sending.get()
        peer.send(frame(TEXT, b"batch") * 100)
        assert [peer.read_frame()[2] for _ in range(100)] == [b"batch"] * 100
        peer.send(close_frame(4000))
        assert peer.read_close() == (4000, b"")


def test_a_slow_reader_over_tls_gets_everything_in_order(serve, certificates):
    served, trusting = certificates

    def flood(request, socket):
        for i in range(200):
            socket.send(bytes([i]) * 50_000)

    server = serve(handler(flood, write_high_water=100_000), ssl_context=served)
    with tls_peer(server, trusting) as peer:
        for i in range(200):
            if i % 50 == 0:
                gevent.sleep(0.02)
            assert peer.read_frame() == (True, BINARY, bytes([i]) * 50_000)
        assert peer.read_frame()[1] == CLOSE
        peer.send(close_frame())


def test_tls_that_is_cut_off_is_1006(serve, certificates):
    served, trusting = certificates
    codes = []

    def session(request, socket):
        socket.read_string_message()
        codes.append(socket.close_code)

    server = serve(handler(session), ssl_context=served)
    with tls_peer(server, trusting) as peer:
        peer.send(frame(TEXT, b"cut")[:3])
        peer.close()
        assert wait_until(lambda: codes) == [1006]


def test_stop_does_not_accept_what_was_pending(serve):
    waiting = gevent.event.Event()

    def app(environ, start_response):
        waiting.wait(limit(2))
        start_response("401 Unauthorized", [("Content-Length", "0")])
        return []

    server = serve(app)
    with Peer.connect(server.address) as peer:
        peer.send(request())
        wait_until(lambda: server.clients)
        stopping = gevent.spawn(server.stop, 10)
        wait_until(lambda: server.is_stopping)
        waiting.set()
        assert peer.read_response().status == 401
        stopping.get()


def test_sessions_go_deep_and_wait_there(serve):
    """A session begins with little room for Python's frames, and gets more when it needs it."""

    def deep(socket, depth):
        if depth:
            deep(socket, depth - 1)
            return
        socket.send(socket.receive())
        socket.send(socket.receive())

    def session(request, socket):
        for depth in (0, 3, 6, 12, 25, 50, 100, 400, 1):
            deep(socket, depth)

    server = serve(handler(session))
    peers = [Peer.open(server.address) for _ in range(20)]
    for round_ in range(18):
        for peer in peers:
            peer.send(frame(TEXT, b"%d" % round_))
        for peer in peers:
            assert peer.read_frame() == (True, TEXT, b"%d" % round_)
    for peer in peers:
        assert peer.read_close(answer=True)[0] == 1000
        peer.close()
