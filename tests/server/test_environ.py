"""The environ of a request, and whose address the client's is."""

from __future__ import annotations

import pytest

from greenws import Config, WebSocketServer
from greenws.http.head import parse_head
from greenws.server.environ import make_environ, remote_address

HEAD = parse_head(
    b"GET /a%20b?c=d HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", Config()
)


def server(**options):
    return WebSocketServer(("127.0.0.1", 0), lambda environ, start_response: [], **options)


def test_an_environ_has_the_request_the_client_and_the_server():
    environ = make_environ(server(), ("127.0.0.2", 1234), HEAD)
    assert (environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"]) == ("GET", "HTTP/1.1")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/a b")
    assert (environ["QUERY_STRING"], environ["HTTP_HOST"]) == ("c=d", "example.com")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("127.0.0.2", "1234")
    assert environ["wsgi.input_terminated"] and "wsgi.input" not in environ


def test_a_unix_socket_has_no_address():
    environ = make_environ(server(), b"", HEAD)
    assert "REMOTE_ADDR" not in environ
    assert remote_address(environ, b"") == b""


@pytest.mark.parametrize(("proxies", "address"), [(0, ("127.0.0.2", 1234)), (1, ("192.0.2.1", 0))])
def test_only_a_trusted_proxy_says_who_the_client_is(proxies, address):
    peer = ("127.0.0.2", 1234)
    environ = make_environ(server(trusted_proxies=proxies), peer, HEAD)
    assert remote_address(environ, peer) == address


def test_each_request_has_an_environ_of_its_own():
    host = server()
    first = make_environ(host, ("127.0.0.2", 1234), HEAD)
    first["REMOTE_USER"] = "ann"
    assert "REMOTE_USER" not in make_environ(host, ("127.0.0.2", 1234), HEAD)
