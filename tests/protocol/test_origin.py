"""The origin check: by itself, on handlers and servers, and behind a proxy."""

from __future__ import annotations

import re

import pytest

from greenws import (
    Config,
    HandshakeError,
    Routes,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
)
from greenws.protocol.origin import check_host, check_origin

from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame, request


class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


def allows(origin, allowed, host="example.com", scheme="http"):
    environ = {"HTTP_HOST": host, "wsgi.url_scheme": scheme}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin
    try:
        check_origin(environ, allowed)
    except HandshakeError as error:
        assert error.status == 403 and error.reason == "origin"
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "expected"),
    [
        ("http://example.com", "example.com", "http", True),
        ("https://example.com", "example.com", "https", True),
        ("https://example.com", "example.com", "http", True),  # TLS may end at a proxy
        ("http://example.com", "example.com", "https", False),
        ("http://EXAMPLE.com", "Example.COM", "http", True),
        ("http://example.com:8000", "example.com:8000", "http", True),
        ("http://example.com", "example.com:80", "http", True),
        ("https://example.com", "example.com:443", "https", True),
        ("http://example.com:8000", "example.com", "http", False),
        ("http://example.com", "example.com:8000", "http", False),
        ("http://[::1]:80", "[::1]", "http", True),
        ("http://example.com.evil.org", "example.com", "http", False),
        ("http://evil-example.com", "example.com", "http", False),
        ("http://example.com@evil.org", "example.com", "http", False),
        ("http://evil.org#example.com", "example.com", "http", False),
        ("http://evil.org/example.com", "example.com", "http", False),
        ("http://example.com,http://evil.org", "example.com", "http", False),
        ("http://example.com:99999999", "example.com", "http", False),
        ("file://", "", "http", False),
        ("null", "null", "http", False),
        ("", "", "http", False),
        ("http://", "", "http", False),
        ("//example.com", "example.com", "http", False),
    ],
)
def test_the_same_origin(origin, host, scheme, expected):
    assert allows(origin, ["self"], host, scheme) is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://example.com", False),
        ("https://a.example.com", True),
        ("https://a.b.example.com", True),
        ("https://A.Example.com:443", True),
        ("https://a.example.com:444", False),
        ("http://a.example.com", False),
        ("https://evil-example.com", False),
        ("https://a.example.com.evil.org", False),
        ("https://.example.com", False),
    ],
)
def test_a_pattern_matches_every_subdomain(origin, expected):
    assert allows(origin, ["https://*.example.com"], host="other") is expected


def test_a_list_allows_only_its_origins():
    allowed = ["https://one.com", "http://two.com:8080", "app://three", "null"]
    for origin in (*allowed, "https://ONE.com:443"):
        assert allows(origin, allowed)
    for origin in ("http://one.com", "https://two.com:8080", "http://example.com", "app://thre"):
        assert not allows(origin, allowed)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.com/.example.com:443",
        "https://evil.com/.example.com",
        "https://evil.com?.example.com",
        "https://evil.com#.example.com",
        "https://evil.com\\.example.com",
        "https://evil.com,a.example.com",
        "https://evil.com@a.example.com",
        "https:// a.example.com",
        "https://a.example.com:x",
        "https://a.example.com:443:443",
        "https://*.example.com",
        "https://",
        "a.example.com",
        "null",
        "",
    ],
)
def test_an_invalid_origin_matches_no_pattern(origin):
    assert not allows(origin, ["https://*.example.com", "self", "https://example.com"])


def test_an_empty_list_allows_no_origin(serve):
    server = serve(WebSocketHandler(lambda r, p: Echo()), config=Config(allowed_origins=[]))
    host = f"http://127.0.0.1:{server.server_port}"
    with Peer.connect(server.address) as peer:
        assert peer.shake(Origin=host, Host=host[7:]).status == 403
    with Peer.open(server.address):
        pass


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("example.com", ["example.com"], True),
        ("Example.COM:8181", ["example.com"], True),
        ("example.com:8181", ["example.com:8181"], True),
        ("example.com:8182", ["example.com:8181"], False),
        ("a.example.com", ["*.example.com"], True),
        ("example.com", ["*.example.com"], False),
        ("evilexample.com", ["*.example.com"], False),
        ("[::1]:80", ["[::1]"], True),
        ("127.0.0.1:1", ["localhost", "127.0.0.1"], True),
        ("evil.com", ["localhost", "127.0.0.1"], False),
        ("", ["localhost"], False),
        ("evil.com", [], False),
    ],
)
def test_allowed_hosts(host, allowed, expected):
    environ = {"HTTP_HOST": host}
    check_host(environ, None)
    config = Config(allowed_hosts=allowed)
    if expected:
        check_host(environ, config.allowed_hosts)
    else:
        with pytest.raises(HandshakeError, match="allowed_hosts") as caught:
            check_host(environ, config.allowed_hosts)
        assert caught.value.status == 421


@pytest.mark.parametrize("value", ["", "http://a", "a/b", "*", "a:b"])
def test_allowed_hosts_are_checked_when_they_are_set(value):
    with pytest.raises(ValueError, match="allowed_hosts"):
        Config(allowed_hosts=value)
    with pytest.raises(TypeError, match="allowed_hosts"):
        Config(allowed_hosts=[1])


def test_a_page_that_had_its_name_resolve_to_the_server_is_refused(serve):
    """DNS rebinding: such a page is of the same origin, for the browser and for us."""
    server = serve(
        WebSocketHandler(lambda r, p: Echo()),
        config=Config(allowed_hosts="localhost"),
        error_log=None,
    )
    for data in (
        request(Host="evil.com", Origin="http://evil.com"),
        b"GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n",
    ):
        with Peer.connect(server.address) as peer:
            peer.send(data)
            assert peer.read_response().status == 421
            assert peer.at_end()
    with Peer.open(server.address, Host="localhost:1234"):
        pass


def test_an_absent_origin_is_allowed():
    assert allows(None, ["https://one.com"])


def test_a_star_allows_everything():
    assert allows("https://evil.org", ["*"]) and allows("null", ["*"])


# -- on servers


def echo(request, socket):
    for message in socket:
        socket.send(message)


def routes_with(**options):
    routes = Routes()
    routes.websocket("/ws", **options)(echo)
    return routes


def status(server, origin, path="/ws", **headers):
    with Peer.connect(server.address) as peer:
        response = peer.shake(path, Origin=origin, **headers)
        if response.status == 101:
            peer.send(close_frame())
            assert peer.read_frame()[1] == CLOSE
        return response.status


def test_a_handler_checks_the_origin_by_default(serve):
    server = serve(routes_with())
    assert status(server, "http://example.com") == 101
    assert status(server, None) == 101
    assert status(server, "http://evil.org") == 403
    assert server.stats.refused == {"origin": 1}


def test_the_refusal_says_which_option_to_set(serve):
    with Peer.connect(serve(routes_with()).address) as peer:
        response = peer.shake("/ws", Origin="http://evil.org")
        assert response.status == 403
        assert "allowed_origins=['self', 'http://evil.org']" in response.body.decode()
        assert "trusted_proxies" in response.body.decode()
        assert response.body.count(b"\n") == 1


def test_the_origin_of_a_page_from_a_file_is_named_as_such():
    """Electron and web views on Android send it; no list of origins can have it."""
    with pytest.raises(HandshakeError, match="a page from a file, such as Electron's") as caught:
        check_origin({"HTTP_HOST": "example.com", "HTTP_ORIGIN": "file://"}, ["self"])
    assert "only allowed_origins='*' would allow it" in str(caught.value)
    check_origin({"HTTP_ORIGIN": "file://"}, Config(allowed_origins="*").allowed_origins)
    with pytest.raises(ValueError):
        Config(allowed_origins=["file://"])


@pytest.mark.parametrize(
    ("origin", "environ", "explanation"),
    [
        ("http://localhost:80", {"HTTP_HOST": "127.0.0.1:80"}, "open the page at 127.0.0.1"),
        ("http://localhost", {"HTTP_HOST": "127.0.0.1"}, "localhost and 127.0.0.1 are two sites"),
        ("http://[::1]:5", {"HTTP_HOST": "localhost:5"}, "connect to [::1]"),
        ("http://localhost:3000", {"HTTP_HOST": "localhost:8181"}, "development server"),
        ("http://localhost:3000", {"HTTP_HOST": "127.0.0.1:8181"}, "development server"),
        ("null", {"HTTP_HOST": "localhost"}, "a file (file://) or in a sandboxed frame"),
        (
            "http://example.com",
            {"HTTP_HOST": "example.com", "wsgi.url_scheme": "https"},
            "open the page over HTTPS",
        ),
        ("https://other.com", {"HTTP_HOST": "example.com"}, "Behind a proxy"),
    ],
)
def test_the_refusal_says_what_probably_happened(origin, environ, explanation):
    with pytest.raises(HandshakeError) as caught:
        check_origin({**environ, "HTTP_ORIGIN": origin}, ["self"])
    assert explanation in str(caught.value)
    allowed = re.search(r"allowed_origins=(\[.*\])", str(caught.value))
    check_origin(
        {**environ, "HTTP_ORIGIN": origin}, Config(allowed_origins=eval(allowed[1])).allowed_origins
    )


@pytest.mark.parametrize(
    "origin", ["http://localhost:8000/", "localhost:8000", "", "http://a,http://b"]
)
def test_what_is_not_an_origin_is_told_from_one_that_is_not_allowed(origin):
    """Scripts send such; ``allowed_origins`` would not take it."""
    with pytest.raises(HandshakeError) as caught:
        check_origin({"HTTP_HOST": "localhost:8000", "HTTP_ORIGIN": origin}, ["self"])
    assert f"is {origin!r}, which is not an origin" in str(caught.value)
    check_origin({"HTTP_HOST": "localhost:8000", "HTTP_ORIGIN": origin}, ["*"])


def test_a_handler_overrides_its_server(serve):
    config = Config(allowed_origins=["https://one.com"])
    assert status(serve(routes_with(), config=config), "https://one.com") == 101
    assert status(serve(routes_with(), config=config), "http://example.com") == 403
    server = serve(routes_with(allowed_origins="*"), config=config)
    assert status(server, "https://evil.org") == 101


def test_the_producer_is_not_asked_about_a_foreign_page(serve):
    asked = []
    handler = WebSocketHandler(lambda request, protocols: asked.append(request))
    assert status(serve(handler), "http://evil.org", "/") == 403
    assert asked == []


def gevent_websocket_app(environ, start_response):
    socket = environ["wsgi.websocket"]
    while (message := socket.receive()) is not None:
        socket.send(message)
    return []


def test_wsgi_websocket_is_checked_only_if_origins_were_set(serve):
    assert status(serve(gevent_websocket_app), "http://evil.org", "/") == 101
    server = serve(gevent_websocket_app, config=Config(allowed_origins="self"))
    assert status(server, "http://evil.org", "/") == 403
    assert status(server, "http://example.com", "/") == 101
    assert server.stats.refused == {"origin": 1}


# -- trusted proxies


def environ_of(serve, hops, **headers):
    seen = []

    def app(environ, start_response):
        seen.append(dict(environ))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    server = serve(app, trusted_proxies=hops)
    with Peer.connect(server.address) as peer:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        peer.send(f"GET / HTTP/1.1\r\nHost: inside\r\n{lines}\r\n".encode())
        assert peer.read_response().status == 200
    return seen[0]


FORWARDED = {
    "X_Forwarded_For": "6.6.6.6, 203.0.113.9",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "example.com",
}


def test_an_untrusted_forwarding_header_is_ignored(serve):
    environ = environ_of(serve, 0, **FORWARDED, Forwarded="for=6.6.6.6", X_Real_IP="6.6.6.6")
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["HTTP_HOST"] == "inside"
    assert environ["wsgi.url_scheme"] == "http"


def test_only_the_values_that_a_trusted_proxy_added_count(serve):
    environ = environ_of(serve, 1, **FORWARDED)
    assert environ["REMOTE_ADDR"] == "203.0.113.9"
    assert environ["HTTP_HOST"] == "example.com"
    assert environ["wsgi.url_scheme"] == "https"


def test_fewer_hops_than_were_announced_are_not_believed(serve):
    environ = environ_of(serve, 3, **FORWARDED)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("hops", [-1, True, "1", 1.0])
def test_the_number_of_proxies_is_a_number(hops):
    with pytest.raises(ValueError, match="trusted_proxies must be the number of proxies"):
        WebSocketServer(("127.0.0.1", 0), Routes(), trusted_proxies=hops)


def test_the_session_behind_a_proxy_has_the_clients_address_and_origin(serve):
    seen = []
    routes = Routes()

    @routes.websocket("/ws")
    def session(request, socket):
        seen.append((socket.remote_address, request.host_url))
        echo(request, socket)

    server = serve(routes, trusted_proxies=1)
    headers = {name: value.split(",")[-1] for name, value in FORWARDED.items()}
    assert status(server, "https://example.com", Host="inside", **headers) == 101
    assert seen == [(("203.0.113.9", 0), "https://example.com/")]
    assert status(server, "http://example.com", Host="inside", **headers) == 403
    assert status(server, "https://example.com", Host="inside") == 403


def test_frames_of_a_session_behind_a_proxy(serve):
    server = serve(routes_with(), trusted_proxies=1)
    with Peer.open(server.address, "/ws", early=frame(TEXT, b"x")) as peer:
        assert peer.read_frame() == (True, TEXT, b"x")
