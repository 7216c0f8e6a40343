"""``connect()``: the handshake that is sent, what comes back, and the socket that opens."""

from __future__ import annotations

import contextlib

import gevent
import gevent.queue
import pytest

import greenws
from greenws import Config, ConnectionClosed, HandshakeError, Routes
from greenws.client.opening import Request
from greenws.waiting import not_before_wait

from ..support.limits import again_after_standstill, limit, pace
from ..support.raw_server import accepted, raw_server
from ..support.wire import CLOSE, PING, PONG, TEXT, close_frame, frame


def echo(request, socket):
    for message in socket:
        socket.send(message)


@pytest.fixture
def url(serve):
    routes = Routes()
    routes.websocket("/echo")(echo)
    routes.websocket("/chat", protocols=["superchat", "chat"])(echo)
    server = serve(routes)
    return f"ws://127.0.0.1:{server.server_port}"


def connect(url, **options):
    return greenws.connect(url, open_timeout=limit(), **{"proxy": None, **options})


def refused(url, **options):
    with pytest.raises(HandshakeError) as caught:
        connect(url, **options)
    return caught.value


# -- the socket


@pytest.mark.parametrize("size", [0, 1, 125, 126, 1023, 1024, 16384, 16385, 65535, 65536, 900_000])
def test_messages_of_every_size_come_back(url, size):
    with connect(f"{url}/echo") as socket:
        text = "é" * (size // 2) + "x" * (size % 2)
        socket.send(text)
        assert socket.receive(limit()) == text
        data = text.encode()
        for form in (data, bytearray(data), memoryview(data)):
            socket.send(form)
            assert socket.receive(limit()) == data


@again_after_standstill(1.0)
def test_a_socket_has_every_call_in_the_role_of_a_client(url):
    with connect(f"{url}/echo") as socket:
        socket.send_string_message("a", final=False)
        socket.send_string_message("b")
        assert socket.read_string_message() == ("ab", greenws.OpcodeType.TEXT, True)
        socket.send_ping(b"p")
        assert socket.read_bytes_message() == (b"p", greenws.OpcodeType.PONG, True)
        socket.send_pong(b"unasked")
        assert 0 < socket.ping(limit()) < pace()
        with pytest.raises(TimeoutError):
            socket.receive(0)
        assert socket.is_connected and socket.close_code is None and socket.closed_by == ""
        assert socket.request is None and socket.response.status == 101
        assert socket.response.headers["upgrade"] == "websocket"
        assert socket.remote_address[0] == "127.0.0.1"
        assert socket.traffic.messages_out == 1
    assert (socket.close_code, socket.closed_by, socket.is_connected) == (1000, "us", False)
    with pytest.raises(ConnectionClosed):
        socket.send("late")


def test_the_block_closes_with_the_code_of_what_leaves_it(serve):
    codes = []

    def note(request, socket):
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive()
        codes.append(caught.value.code)

    routes = Routes()
    routes.websocket("/")(note)
    url = f"ws://127.0.0.1:{serve(routes).server_port}/"
    with connect(url):
        pass
    with pytest.raises(AttributeError, match=r"'recv'; use receive\(\)"), connect(url) as socket:
        socket.recv()
    with pytest.raises(KeyboardInterrupt), connect(url):
        raise KeyboardInterrupt
    with pytest.raises(ConnectionClosed), connect(url) as socket:
        socket.close(3000)
        socket.receive()
    with gevent.Timeout(limit()):
        while len(codes) < 4:
            gevent.sleep(0.001)
    assert codes == [1000, 1011, 1001, 3000]


def test_arguments_that_are_none_are_left_out(url):
    with connect(f"{url}/echo", subprotocols=None, headers=None, origin=None) as socket:
        assert socket.subprotocol is None


@again_after_standstill(1.0)
def test_a_client_answers_pings_and_measures_the_latency_by_itself(url):
    with connect(f"{url}/echo", config=Config(ping_interval=0.01)) as socket:
        with gevent.Timeout(limit()):
            while socket.latency is None:
                with pytest.raises(TimeoutError):
                    socket.receive(0.01)
        assert 0 < socket.latency < pace()


def test_a_server_that_answers_no_ping_is_lost():
    def serve(connection):
        connection.accept()
        connection.hold()

    with raw_server(serve) as server:
        config = Config(ping_interval=0.02, ping_timeout=0.05)
        with connect(server.url, config=config) as socket:
            with pytest.raises(ConnectionClosed) as caught:
                socket.receive(limit())
        assert caught.value.code == 1006 and "ping_timeout" in caught.value.reason


@pytest.mark.parametrize("deflate", [True, False])
def test_compression_is_negotiated(url, deflate):
    with connect(f"{url}/echo", config=Config(deflate=deflate)) as socket:
        assert ("Sec-WebSocket-Extensions" in socket.response.headers) == deflate
        socket.send("a" * 10_000)
        assert socket.receive(limit()) == "a" * 10_000
        assert (socket.traffic.bytes_out < 1000) == deflate
        assert (socket.traffic.bytes_in < 1000) == deflate


# -- the request


def test_the_handshake_is_that_of_the_rfc():
    def serve(connection):
        connection.accept()
        connection.send(close_frame(mask=None))

    with raw_server(serve) as server:
        done = []
        server.handle = lambda connection: (serve(connection), done.append(connection.head))
        connect(f"{server.url}/a%20b/ü?q=1&r=%2f", headers={"X-A": "1"}, origin="https://o").close()
        line, *headers = done[0]
        assert line == "GET /a%20b/%C3%BC?q=1&r=%2f HTTP/1.1"
        names = [header.split(": ")[0] for header in headers]
        assert len(set(names)) == len(names)
        values = dict(header.split(": ", 1) for header in headers)
        assert values["Host"] == f"127.0.0.1:{server.port}"
        assert values["Sec-WebSocket-Version"] == "13"
        assert (values["X-A"], values["Origin"]) == ("1", "https://o")
        assert values["User-Agent"].endswith("greenws")
        assert "Sec-WebSocket-Protocol" not in values and "Authorization" not in values


def test_a_subprotocol_is_chosen_of_those_that_are_offered(url):
    with connect(f"{url}/chat", subprotocols=["other", "chat"]) as socket:
        assert socket.subprotocol == "chat"
    error = refused(f"{url}/chat", subprotocols=["other"])
    assert error.status == 400 and b"protocol" in error.body


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"subprotocols": "chat"}, TypeError, "list of str"),
        ({"subprotocols": [1]}, TypeError, "1"),
        ({"subprotocols": 1}, TypeError, "list of str.*not 1"),
        ({"timeout": 3}, TypeError, "'timeout'; write open_timeout="),
        ({"extra_headers": {}}, TypeError, "write headers="),
        ({"ssl": True}, TypeError, "write ssl_context="),
        ({"protocols": ["chat"]}, TypeError, "write subprotocols="),
        ({"nothing": 1}, TypeError, r"'nothing'; write greenws\.connect\('ws://host/path'\)"),
        ({"headers": 3}, TypeError, "mapping or pairs.*not 3"),
        ({"headers": "x"}, TypeError, "mapping or pairs.*not 'x'"),
        ({"headers": ["ab"]}, TypeError, "mapping or pairs"),
        ({"ssl_context": 3}, TypeError, "ssl_context must be.*not 3"),
        ({"subprotocols": ["a b"]}, ValueError, "'a b' is not a token"),
        ({"subprotocols": ["a", "a"]}, ValueError, "duplicate subprotocol"),
        ({"headers": {"Upgrade": "h2c"}}, ValueError, "sets Upgrade itself"),
        ({"headers": {"sec-websocket-protocol": "a"}}, ValueError, "subprotocols="),
        ({"headers": {"X": "a\r\nY: b"}}, ValueError, "control character"),
        ({"headers": {"X\r\n": "a"}}, ValueError, "name"),
        ({"headers": {"X": "a\0"}}, ValueError, "control"),
        ({"headers": {"X": "€"}}, ValueError, "Latin-1"),
        ({"headers": {"X": 1}}, TypeError, "1"),
        ({"headers": [("X", b"a")]}, TypeError, "b'a'"),
        ({"origin": "a\nb"}, ValueError, "control"),
        ({"origin": "https://a", "headers": {"origin": "https://b"}}, ValueError, "twice"),
        ({"config": {}}, TypeError, "Config"),
        ({"open_timeout": 0}, ValueError, "open_timeout"),
        ({"open_timeout": "1"}, TypeError, "open_timeout"),
    ],
)
def test_an_invalid_argument_is_refused_before_anything_is_sent(options, error, match):
    with raw_server(lambda connection: None) as server:
        with pytest.raises(error, match=match):
            greenws.connect(server.url, **{"proxy": None, **options})
        assert server.connections == 0


def test_headers_may_repeat_and_replace_those_of_the_handshake():
    request = Request(headers=[("X", "1"), ("X", "2"), ("User-Agent", "me")])
    assert request.headers == [("X", "1"), ("X", "2"), ("User-Agent", "me")]
    with raw_server(lambda connection: connection.refuse("403 Forbidden")) as server:
        heads = []
        server.handle = lambda connection: (
            connection.refuse("403 Forbidden"),
            heads.append(connection.head),
        )
        refused(server.url, headers={"host": "other.example"})
        assert [line for line in heads[0] if line.lower().startswith("host")] == [
            "host: other.example"
        ]


def test_user_and_password_of_the_url_are_sent_as_basic_authentication():
    with raw_server(lambda connection: None) as server:
        seen = []
        server.handle = lambda connection: seen.append(connection.refuse("401 Unauthorized"))
        url = server.url.replace("//", "//us%40er:p%3Aä@")
        error = refused(url)
        assert seen.pop()["authorization"] == "Basic dXNAZXI6cDrDpA=="
        assert "@" not in str(error)
        refused(url, headers={"Authorization": "Bearer t"})
        assert seen.pop()["authorization"] == "Bearer t"


# -- the response


def test_a_refusal_has_status_headers_and_body():
    def serve(connection):
        connection.refuse(
            "401 Unauthorized", "WWW-Authenticate: Basic", "Set-Cookie: a=1", "Set-Cookie: b=2",
            body="log in first\n",
        )  # fmt: skip

    with raw_server(serve) as server:
        error = refused(server.url)
        assert (error.status, error.reason, error.body) == (401, "status", b"log in first\n")
        assert error.headers["www-authenticate"] == "Basic"
        assert error.headers.getlist("set-cookie") == ["a=1", "b=2"]
        assert str(error) == f"{server.url} responded with status 401: log in first"


def test_of_a_large_body_64_kib_are_kept():
    def serve(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 500 No\r\n\r\n")
        while True:
            connection.send(b"x" * 65536)

    with raw_server(serve) as server:
        assert refused(server.url).body == b"x" * 65536


def test_a_body_that_does_not_end_does_not_hold_the_error_up(monkeypatch):
    monkeypatch.setattr("greenws.client.exchange._BODY_TIMEOUT", 0.02)

    def serve(connection):
        connection.refuse("503 Later", "Content-Length: 9", body="")
        connection.hold()

    def trickle(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 503 Later\r\nContent-Length: 9\r\n\r\nwait")
        connection.hold()

    with raw_server(trickle) as server:
        error = refused(server.url)
        assert (error.status, error.body) == (503, b"wait")


@pytest.mark.parametrize(
    ("response", "status", "match"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 0, "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x50", 0, "wss://"),
        (b"HTTP/1.1 101 Ok\r\n\r\n", 101, "Upgrade"),
        (b"HTTP/1.1 101 Ok\r\nUpgrade: websocket\r\n\r\n", 101, "Connection"),
        (b"HTTP/1.1 101\r\nBad Header: 1\r\n\r\n", 0, "malformed"),
        (b"HTTP/1.1 101 Ok\r\nUpgrade", 0, "middle"),
        (b"HTTP/1.1 101 Ok\r\n" + b"X: y\r\n" * 101 + b"\r\n", 0, "max_headers"),
        (b"HTTP/1.1 101 Ok\r\nX: " + b"y" * 40_000, 0, "max_header_size"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 17, 0, "16 1xx responses"),
        (b"HTTP/1.1 200 Ok\r\nContent-Length: 2\r\n\r\nhi", 200, "status 200"),
    ],
)
def test_a_malformed_response_is_refused(response, status, match):
    def serve(connection):
        connection.read_request()
        connection.send(response)

    with raw_server(serve) as server:
        error = refused(server.url)
        assert error.status == status
        assert match in str(error)


@pytest.mark.parametrize(
    ("lines", "reason", "match"),
    [
        (["Sec-WebSocket-Accept: 7P8DlpXmyPZW9Vqv0uVRVyUZWXU="], "malformed", "match the key"),
        (["Sec-WebSocket-Protocol: other"], "subprotocol", "'other'"),
        (["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"], "subprotocol", "chat"),
        (["Sec-WebSocket-Extensions: x-webkit-deflate-frame"], "extension", "not offered"),
        (["Sec-WebSocket-Extensions: permessage-deflate; a=1"], "extension", "unknown"),
    ],
)
def test_an_acceptance_of_what_was_not_offered_is_refused(lines, reason, match):
    with raw_server(lambda connection: connection.accept(*lines)) as server:
        error = refused(server.url, subprotocols=["chat"])
        assert (error.status, error.reason) == (101, reason)
        assert match in str(error)


def test_an_acceptance_by_http_1_0_is_refused():
    def serve(connection):
        key = connection.read_request()["sec-websocket-key"]
        connection.send(accepted(key).replace(b"HTTP/1.1", b"HTTP/1.0"))

    with raw_server(serve) as server:
        assert "HTTP/1.0" in str(refused(server.url))


def test_a_server_that_closes_without_a_response_is_an_oserror():
    def close(connection):
        connection.read_request()

    def reset(connection):
        connection.read_request()
        connection.reset()

    for serve in (close, reset):
        with raw_server(serve) as server:
            with pytest.raises(ConnectionResetError, match="if this port is for TLS, use wss://"):
                connect(server.url)


def test_a_server_that_does_not_answer_is_a_timeout():
    with raw_server(lambda connection: connection.hold()) as server:
        with pytest.raises(TimeoutError, match=rf"{server.port} .*\(open_timeout\)"):
            greenws.connect(server.url, open_timeout=0.05, proxy=None)


def test_a_timeout_of_the_caller_is_the_callers():
    with raw_server(lambda connection: connection.hold()) as server:
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as timeout:
            connect(server.url)
        assert caught.value is timeout


def test_interim_responses_are_skipped():
    def serve(connection):
        key = connection.read_request()["sec-websocket-key"]
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + accepted(key))
        connection.send(close_frame(mask=None))

    with raw_server(serve) as server:
        connect(server.url).close()


@pytest.mark.parametrize("behind", [1, 2, 3])
def test_what_comes_with_the_response_belongs_to_the_websocket(behind):
    """However the stream is cut."""
    frames = frame(TEXT, b"one", mask=None) + frame(PING, b"?", mask=None)

    def serve(connection):
        key = connection.read_request()["sec-websocket-key"]
        stream = accepted(key) + frames + close_frame(mask=None)
        middle = len(stream) - len(frames) * behind // 3
        connection.send(stream[:middle])
        connection.send(stream[middle:])
        assert connection.read_client_frame() == (True, PONG, b"?")
        assert connection.read_client_frame()[1] == CLOSE

    with raw_server(serve) as server, connect(server.url) as socket:
        assert list(socket) == ["one"]


# -- redirects


def to(location, status="302 Found"):
    return lambda connection: connection.refuse(status, f"Location: {location}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(url, status):
    with raw_server(to(f"{url.replace('ws', 'http')}/echo", f"{status} Moved")) as server:
        with connect(server.url) as socket:
            assert socket.response.status == 101
            assert socket.remote_address[1] != server.port


def test_a_redirect_on_the_same_host_keeps_the_headers_and_the_credentials():
    seen = []

    def serve(connection):
        headers = connection.refuse("307 Moved", "Location: /there")
        seen.append((connection.head[0], headers))
        server.handle = lambda second: seen.append((second.refuse("403 No"), second.head[0])[::-1])

    with raw_server(serve) as server:
        url = server.url.replace("//", "//user:pass@")
        refused(url, headers={"Cookie": "a=1", "X-Key": "k"}, origin="https://o")
        (first, one), (second, other) = seen
        assert (first, second) == ("GET / HTTP/1.1", "GET /there HTTP/1.1")
        for name in ("authorization", "cookie", "x-key", "origin", "user-agent"):
            assert one[name] == other[name]
        assert one["sec-websocket-key"] != other["sec-websocket-key"]


def test_a_redirect_to_another_host_takes_no_credentials_along():
    """Another port of the same host is another host."""
    seen = []
    with raw_server(lambda connection: seen.append(connection.refuse("403 No"))) as other:
        with raw_server(to(f"{other.url}/b")) as server:
            refused(
                server.url.replace("//", "//user:pass@"),
                headers={"Cookie": "a=1", "X-Key": "k", "Authorization": "t", "User-Agent": "me"},
                origin="https://o",
                subprotocols=["chat"],
            )
    (headers,) = seen
    assert not {"cookie", "x-key", "authorization"} & set(headers)
    assert (headers["user-agent"], headers["origin"]) == ("me", "https://o")
    assert headers["sec-websocket-protocol"] == "chat"
    assert headers["host"] == f"127.0.0.1:{other.port}"


def test_a_redirect_to_a_page_for_login_is_reported():
    def serve(connection):
        connection.refuse("302 Found", "Location: /login?next=secret")
        server.handle = lambda page: page.refuse("200 OK")

    with raw_server(serve) as server:
        error = refused(server.url)
    place = server.url.rstrip("/")
    assert str(error).startswith(f"{place} redirected to {place}/login: ")
    assert error.status == 200 and "responded with status 200" in str(error)


def test_redirects_without_end_are_given_up():
    with raw_server(to("/again")) as server:
        error = refused(server.url)
        assert (error.status, error.reason) == (302, "redirect")
        assert server.connections == 11


@pytest.mark.parametrize("location", ["ftp://h/", "http://h:x/", "ws+unix:///run/a.sock"])
def test_a_redirect_to_nowhere_is_refused(location):
    with raw_server(to(location)) as server:
        error = refused(server.url)
        assert error.reason == "redirect" and location in str(error)
        assert error.status == 302 and error.headers["location"] == location


def test_a_redirect_from_tls_to_a_connection_without_is_refused(certificates):
    served, trusting = certificates
    seen = []
    with raw_server(lambda connection: seen.append(connection)) as plain:
        with raw_server(to(plain.url), ssl_context=served) as server:
            error = refused(server.url, ssl_context=trusting)
    assert error.reason == "redirect" and "without TLS" in str(error)
    assert error.status == 302 and seen == []


def test_a_redirect_without_a_location_is_a_refusal():
    with raw_server(lambda connection: connection.refuse("302 Found")) as server:
        assert refused(server.url).status == 302


# -- what works with any socket


def test_select_waits_for_a_client_and_a_queue(url):
    queue = gevent.queue.Queue()
    with connect(f"{url}/echo") as socket:
        queue.put("queued")
        assert greenws.select(socket, queue, timeout=limit()) == (queue, "queued")
        socket.send("echoed")
        assert greenws.select(socket, queue, timeout=limit()) == (socket, "echoed")


def test_clients_are_members_of_a_room(url):
    rooms = greenws.Rooms()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(f"{url}/echo")) for _ in range(3)]
        for socket in sockets:
            stack.enter_context(rooms["r"].join(socket))
        rooms["r"].send("to all")
        for socket in sockets:
            assert socket.receive(limit()) == "to all"  # its server has echoed it


def test_a_hook_is_called_before_a_client_waits(url):
    calls = []

    def hook():
        calls.append(gevent.getcurrent())

    greenws.before_wait(hook)
    try:
        with connect(f"{url}/echo") as socket:
            socket.send("x")
            assert socket.receive(limit()) == "x"
    finally:
        not_before_wait(hook)
    assert gevent.getcurrent() in calls


def test_other_greenlets_and_threads_may_send(url, hub_errors):
    with connect(f"{url}/echo") as socket:
        gevent.joinall([gevent.spawn(socket.send, "greenlet") for _ in range(5)])
        for _ in range(5):
            assert socket.receive(limit()) == "greenlet"
        gevent.get_hub().threadpool.apply(socket.send, ("thread",))
        assert socket.receive(limit()) == "thread"
        with pytest.raises(RuntimeError, match="own thread"):
            gevent.get_hub().threadpool.apply(socket.receive)
        hub_errors.take()
