"""Proxies: which is taken, and the way through it. The proxies here are written by hand, so that
what they are asked for can be seen."""

from __future__ import annotations

import base64
import contextlib

import gevent
import pytest
from gevent import socket

import greenws
from greenws import HandshakeError, Routes
from greenws.client.proxy import Proxy, find_proxy
from greenws.client.url import parse_url

from ..support.limits import limit
from ..support.raw_server import raw_server


def find(url, proxy=True):
    return find_proxy(parse_url(url), proxy)


@pytest.fixture
def environment(monkeypatch):
    for name in ("ws", "wss", "http", "https", "all", "socks", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    return monkeypatch.setenv


# -- which


def test_the_environment_names_a_proxy_for_each_scheme(environment):
    assert find("ws://h/") is None
    environment("all_proxy", "socks5h://a")
    assert find("ws://h/") == Proxy("socks5", "a", 1080, None, None, None)
    environment("HTTP_PROXY", "http://b:3128")
    environment("https_proxy", "c")
    assert str(find("ws://h/")) == "http://b:3128"
    assert str(find("wss://h/")) == "http://c:80"
    environment("wss_proxy", "http://d")
    assert str(find("wss://h/")) == "http://d:80"
    assert find("ws+unix:///run/a.sock") is None
    assert find("wss://h/", None) is None and find("wss://h/", False) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "bypassed"),
    [
        ("h", "h", True),
        ("example.com", "www.example.com", True),
        (".example.com", "www.example.com", True),
        ("example.com", "notexample.com", False),
        ("a, example.com ,b", "example.com", True),
        ("h:81", "h:81", True),
        ("h:82", "h:81", False),
        ("*", "h", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("fd00::/8", "[fd00::1]", True),
        ("::1", "[::1]:81", True),
        ("", "h", False),
    ],
)
def test_some_hosts_need_no_proxy(environment, no_proxy, host, bypassed):
    environment("http_proxy", "http://p")
    environment("no_proxy", no_proxy)
    assert (find(f"ws://{host}/") is None) == bypassed
    assert find(f"ws://{host}/", "http://p") is not None  # it was asked for


def test_user_and_password_of_a_proxy(environment):
    proxy = find("ws://h/", "http://us%40er:p%3Aw@p:1")
    expected = base64.b64encode(b"us@er:p:w").decode()
    assert proxy == Proxy("http", "p", 1, f"Basic {expected}", "us@er", "p:w")
    assert "p:w" not in str(proxy)


@pytest.mark.parametrize(
    ("proxy", "url", "error", "match"),
    [
        ("ftp://p", "ws://h/", ValueError, "http://, https:// or socks5://"),
        ("http://", "ws://h/", ValueError, "proxy: the URL has no host"),
        ("http://p:x", "ws://h/", ValueError, "port"),
        ("https://p", "wss://h/", ValueError, "TLS within TLS"),
        (f"socks5://u:{'x' * 256}@p", "ws://h/", ValueError, "its password is longer than 255"),
        (3128, "ws://h/", TypeError, "3128"),
    ],
)
def test_what_is_no_proxy_is_refused(proxy, url, error, match):
    with pytest.raises(error, match=match):
        find(url, proxy)


# -- the way through


@pytest.fixture
def echo(serve, certificates):
    """``echo(tls)``: the port of a server."""
    routes = Routes()

    @routes.websocket("/")
    def echo(request, socket):
        for message in socket:
            socket.send(f"{request.host} {message}")

    def start(tls=False):
        return serve(routes, **({"ssl_context": certificates[0]} if tls else {})).server_port

    return start


def relay(connection, host, port):
    """Joins a client with the server that it asked for."""
    upstream = socket.create_connection((host, port))

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    back = gevent.spawn(pump, upstream, connection.sock)
    pump(connection.sock, upstream)
    back.join()
    upstream.close()


class HttpProxy:
    def __init__(self):
        self.asked = []

    def __call__(self, connection):
        headers = connection.read_request()
        self.asked.append((connection.head[0], headers))
        _, authority, _ = connection.head[0].split()
        connection.send(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 p\r\n\r\n")
        relay(connection, "127.0.0.1", int(authority.rpartition(":")[2]))


class SocksProxy:
    def __init__(self, reply=0, method=0):
        self.asked = []
        self.reply = reply
        self.method = method

    def __call__(self, connection):
        version, count = connection.read(2)
        methods = connection.read(count)
        assert version == 5 and self.method in (*methods, 255)
        connection.send(bytes([5, self.method]))
        if self.method == 2:
            _, size = connection.read(2)
            user = connection.read(size)
            password = connection.read(connection.read(1)[0])
            connection.send(bytes([1, password != b"secret"]))
            self.asked.append((user, password))
        assert connection.read(4) == b"\x05\x01\x00\x03"  # a name, not an address
        host = connection.read(connection.read(1)[0]).decode()
        port = int.from_bytes(connection.read(2), "big")
        self.asked.append((host, port))
        connection.send(bytes([5, self.reply]) + b"\x00\x01\x7f\x00\x00\x01\x00\x00")
        if self.reply == 0:
            relay(connection, "127.0.0.1", port)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_a_connection_goes_through_a_proxy(kind, tls, echo, certificates):
    handle = HttpProxy() if kind == "http" else SocksProxy()
    port = echo(tls)
    host = "127.0.0.1" if tls else "only.proxy.knows"
    if tls and kind == "socks5":
        pytest.importorskip("python_socks")
        handle_name = handle

        def by_address(connection):
            connection.read(3)
            connection.send(b"\x05\x00")
            assert connection.read(8) == b"\x05\x01\x00\x01\x7f\x00\x00\x01"
            connection.read(2)
            connection.send(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
            handle_name.asked.append((host, port))
            relay(connection, "127.0.0.1", port)

        handle = by_address
        handle.asked = handle_name.asked
    with raw_server(handle) as proxy:
        with greenws.connect(
            f"{'wss' if tls else 'ws'}://{host}:{port}/",
            proxy=f"{kind}://127.0.0.1:{proxy.port}",
            ssl_context=certificates[1] if tls else None,
            open_timeout=limit(),
        ) as client:
            client.send("x" * 100_000)
            assert client.receive(limit()) == f"{host}:{port} " + "x" * 100_000
        if kind == "http":
            line, headers = handle.asked[0]
            assert line == f"CONNECT {host}:{port} HTTP/1.1"
            assert headers == {"host": f"{host}:{port}"}
        else:
            assert handle.asked == [(host, port)]


def test_a_proxy_with_tls(echo, certificates, monkeypatch, tmp_path):
    served, trusting = certificates
    monkeypatch.setattr("greenws.client.proxy.trusting_context", lambda: trusting)
    handle = HttpProxy()
    with raw_server(handle, ssl_context=served) as proxy:
        url = f"ws://h:{echo()}/"
        with greenws.connect(url, proxy=f"https://127.0.0.1:{proxy.port}") as client:
            client.send("x")
            assert client.receive(limit()).endswith(" x")
        assert len(handle.asked) == 1


def test_the_environments_proxy_is_taken(echo, environment):
    handle = HttpProxy()
    with raw_server(handle) as proxy:
        environment("http_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        port = echo()
        with greenws.connect(f"ws://h.example:{port}/", open_timeout=limit()) as client:
            client.send("x")
            assert client.receive(limit()) == f"h.example:{port} x"
        line, headers = handle.asked[0]
        assert headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"
        environment("no_proxy", "127.0.0.1")
        greenws.connect(f"ws://127.0.0.1:{port}/", open_timeout=limit()).close()
        assert len(handle.asked) == 1


def test_a_user_of_a_socks_proxy(echo):
    handle = SocksProxy(method=2)
    with raw_server(handle) as proxy:
        port = echo()
        url = f"ws://h.example:{port}/"
        greenws.connect(url, proxy=f"socks5://u:secret@127.0.0.1:{proxy.port}").close()
        assert handle.asked == [(b"u", b"secret"), ("h.example", port)]
        with pytest.raises(HandshakeError, match="authentication failure") as caught:
            greenws.connect(url, proxy=f"socks5://u:wrong@127.0.0.1:{proxy.port}")
        assert (caught.value.status, caught.value.reason) == (407, "proxy")


@pytest.mark.parametrize(
    ("reply", "error"),
    [(1, OSError), (2, PermissionError), (5, ConnectionRefusedError), (4, OSError)],
)
def test_a_socks_proxy_that_reaches_nobody_is_an_oserror(reply, error):
    with raw_server(SocksProxy(reply)) as proxy:
        with pytest.raises(error, match="cannot connect to ws://h.example"):
            greenws.connect("ws://h.example/", proxy=f"socks5://127.0.0.1:{proxy.port}")


def test_a_proxy_that_refuses_is_a_handshake_error():
    def refuse(connection):
        connection.refuse("407 Proxy Authentication Required", body="who are you?")

    with raw_server(refuse) as proxy:
        with pytest.raises(HandshakeError) as caught:
            greenws.connect("ws://h.example/", proxy=f"http://127.0.0.1:{proxy.port}")
        error = caught.value
        assert (error.status, error.reason, error.body) == (407, "proxy", b"who are you?")
        assert str(error) == (
            f"Proxy http://127.0.0.1:{proxy.port} responded with status 407: who are you?"
        )


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 Ok\r\n\r\nHTTP", b"SSH-2.0\r\n", b"HTTP/1.1 2"],
)
def test_a_proxy_that_answers_nonsense_is_a_handshake_error(response):
    def answer(connection):
        connection.read_request()
        connection.send(response)

    with raw_server(answer) as proxy:
        with pytest.raises(HandshakeError, match="Proxy http") as caught:
            greenws.connect("ws://h.example/", proxy=f"http://127.0.0.1:{proxy.port}")
        assert (caught.value.status, caught.value.reason) == (0, "proxy")


def test_a_proxy_that_switches_protocols_is_a_handshake_error():
    switching = "Upgrade: websocket", "Connection: Upgrade"
    with raw_server(lambda c: c.refuse("101 Switching Protocols", *switching)) as proxy:
        with pytest.raises(
            HandshakeError, match="Proxy http.* responded with status 101"
        ) as caught:
            greenws.connect("ws://h.example/", proxy=f"http://127.0.0.1:{proxy.port}")
        assert (caught.value.status, caught.value.reason) == (101, "proxy")


def test_a_proxy_that_closes_without_a_response_is_named():
    with raw_server(lambda connection: connection.read_request()) as proxy:
        with pytest.raises(
            ConnectionResetError, match="Proxy http://127.0.0.1:.*: the server closed"
        ):
            greenws.connect("ws://h.example/", proxy=f"http://127.0.0.1:{proxy.port}")


def test_a_proxy_that_does_not_listen_is_an_oserror_that_says_so():
    with (
        socket.socket() as unused,
        pytest.raises(ConnectionRefusedError, match="proxy: cannot connect"),
    ):
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        greenws.connect("ws://h.example/", proxy=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_silent_proxy_is_a_timeout(scheme):
    with raw_server(lambda connection: connection.hold()) as proxy:
        with pytest.raises(TimeoutError, match="open_timeout"):
            greenws.connect(
                "ws://h.example/", proxy=f"{scheme}://127.0.0.1:{proxy.port}", open_timeout=0.05
            )
