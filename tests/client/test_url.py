"""URLs, and where a redirect leads."""

from __future__ import annotations

import pytest

from greenws.client.url import is_same_host, parse_url, redirect
from greenws.exceptions import HandshakeError

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "target", "authority"),
    [
        ("ws://example.com", False, "example.com", 80, "/", "example.com"),
        ("WSS://Example.com/a?b", True, "example.com", 443, "/a?b", "example.com"),
        ("ws://example.com?b=c", False, "example.com", 80, "/?b=c", "example.com"),
        ("ws://h:8080/a", False, "h", 8080, "/a", "h:8080"),
        ("wss://h:80/", True, "h", 80, "/", "h:80"),
        ("ws://h:80/", False, "h", 80, "/", "h"),
        ("ws://[::1]:8080/", False, "::1", 8080, "/", "[::1]:8080"),
        ("ws://[fe80::1%25lo]/", False, "fe80::1%lo", 80, "/", "[fe80::1]"),
        ("ws://bücher.example/", False, "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("ws://h/ü?ä=%C3%BC", False, "h", 80, "/%C3%BC?%C3%A4=%C3%BC", "h"),
        ("ws://my_host/", False, "my_host", 80, "/", "my_host"),
    ],
)
def test_a_url_is_parsed(url, secure, host, port, target, authority):
    found = parse_url(url)
    assert (found.secure, found.host, found.port, found.target) == (secure, host, port, target)
    assert found.authority == authority
    assert found.socket_path is None and found.credentials is None


@pytest.mark.parametrize(
    ("url", "path", "target"),
    [
        ("ws+unix:///run/app.sock", "/run/app.sock", "/"),
        ("ws+unix:///run/app.sock:/chat?a=b", "/run/app.sock", "/chat?a=b"),
        ("ws+unix:/run/app.sock:/", "/run/app.sock", "/"),
        ("ws+unix://%2Frun%2Fapp.sock/chat", "/run/app.sock", "/chat"),
        ("ws+unix://%2Frun%2Fa%20b.sock", "/run/a b.sock", "/"),
    ],
)
def test_a_url_of_a_unix_socket_is_parsed(url, path, target):
    found = parse_url(url)
    assert (found.socket_path, found.target, found.authority) == (path, target, "localhost")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://h/", "ws://, wss:// or ws\\+unix://"),
        ("h/", "ws://"),
        ("", "ws://"),
        ("ws:", "no host"),
        ("ws:///a", "no host"),
        ("ws://h/#a", "fragment"),
        ("ws://h/a#", "fragment"),
        ("ws://h/a b", "percent-encode"),
        ("ws://h/a\nb", "percent-encode"),
        ("ws://h\t/", "percent-encode"),
        ("ws://h:0/", "port"),
        ("ws://h:65536/", "port"),
        ("ws://h:x/", "port"),
        ("ws://h:/", "port"),
        ("ws://[::g]/", "IPv"),
        ("ws://[::1/", "IPv6"),
        ("ws://a,b/", "invalid host"),
        ("ws://a%0d/", "invalid host"),
        ("ws://a..b/", "invalid host"),
        ("ws://.a/", "invalid host"),
        (f"ws://{'a' * 64}.example/", "invalid host"),
        ("ws://[::1]a/", "[Ii]nvalid"),
        ("ws://a%3Ab:c@h/", "':'"),
        ("ws+unix://", "socket"),
        ("ws+unix:///run/a:b", "begin with '/'"),
    ],
)
def test_what_is_no_url_of_a_websocket_is_refused(url, match):
    with pytest.raises(ValueError, match=match):
        parse_url(url)


def test_a_name_may_end_with_the_root():
    assert parse_url(f"ws://{'a' * 63}.example./").host == f"{'a' * 63}.example."


def test_a_url_of_another_scheme_does_not_show_its_password():
    with pytest.raises(ValueError, match="not 'http://'") as caught:
        parse_url("http://user:secret@h/")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match=r"ws\+unix://$"):
        parse_url("user:secret@h/path")


def test_a_url_is_a_str():
    with pytest.raises(TypeError, match="b'ws://h/'"):
        parse_url(b"ws://h/")


def test_the_user_and_password_are_unquoted_and_in_no_name():
    found = parse_url("ws://Aladdin:open%20sesame@h/")
    assert found.credentials == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # RFC 7617, section 2
    assert found.place == "ws://h"
    assert parse_url("ws://user@h/").credentials == "Basic dXNlcjo="


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b", "ws://h:81/b"),
        ("b?c", "ws://h:81/a/b?c"),
        ("?c", "ws://h:81/a/x?c"),
        ("//other/b", "ws://other/b"),
        ("http://other:82/b", "ws://other:82/b"),
        ("https://other/b", "wss://other/b"),
        ("ws://other/b", "ws://other/b"),
        (" wss://other/b#c ", "wss://other/b"),
        ("/\u00c3\u00a9 b?\u00c3\u00a9", "ws://h:81/%C3%A9%20b?%C3%A9"),  # UTF-8, as it is read
        ("/%C3%A9%20b", "ws://h:81/%C3%A9%20b"),
        ("//b\u00c3\u00bccher.example/", "ws://xn--bcher-kva.example/"),
    ],
)
def test_a_redirect_is_relative_to_the_url(location, url):
    assert redirect(parse_url("ws://h:81/a/x"), location) == parse_url(url)


@pytest.mark.parametrize(
    ("url", "location", "match"),
    [
        ("wss://h/", "http://h/", "without TLS"),
        ("wss://h/", "ws://h/", "without TLS"),
        ("ws://h/", "ftp://h/", "'ftp'"),
        ("ws://h/", "ws+unix:///run/app.sock", "scheme"),
        ("ws://h/", "javascript:alert(1)", "scheme"),
        ("ws://h/", "http://h:x/", "port"),
        ("ws://h/", "http://a..b/", "invalid host"),
        ("ws+unix:///run/app.sock", "http://h/", "Unix socket"),
    ],
)
def test_a_redirect_that_must_not_be_followed_is_refused(url, location, match):
    with pytest.raises(HandshakeError, match=match) as caught:
        redirect(parse_url(url), location)
    assert caught.value.reason == "redirect"


def test_a_redirect_does_not_take_credentials_along():
    assert redirect(parse_url("ws://u:p@h/"), "/b").credentials is None
    assert redirect(parse_url("ws+unix:///run/a.sock:/x"), "/b").socket_path == "/run/a.sock"


def test_the_same_host_is_the_same_origin_or_its_tls():
    def same(one, other):
        return is_same_host(parse_url(one), parse_url(other))

    assert same("ws://h/a", "ws://H/b")
    assert same("ws://h/", "wss://h/")
    assert not same("wss://h/", "ws://h/")
    assert not same("ws://h/", "ws://h:81/")
    assert not same("ws://h:8080/", "wss://h:8443/")
    assert not same("ws://h/", "ws://h.example/")
    assert not same("ws://h/", "ws+unix:///run/a.sock")
