"""Request heads: which are accepted, which are rejected, and how that compares with h11."""

from __future__ import annotations

import gc
import re
import tracemalloc
from urllib.parse import quote, unquote

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenws.config import Config
from greenws.exceptions import RequestError
from greenws.http.head import error_response, find_head, parse_chunk_size, parse_head, parse_trailer
from greenws.protocol.handshake import is_upgrade

from ..support.examples import examples
from ..support.heads import REFUSED, head

pytestmark = pytest.mark.no_io

CONFIG = Config()


def environ_of(data: bytes) -> dict:
    environ: dict = {}
    parse_head(data, CONFIG).add_to(environ)
    return environ


def refused(data: bytes, config: Config = CONFIG) -> RequestError:
    with pytest.raises(RequestError) as caught:
        size = find_head(data, 0, config)
        assert size == len(data), "the head is not complete"
        parse_head(data, config)
    return caught.value


# -- what is taken


def test_a_head_becomes_an_environ():
    environ = environ_of(
        head(
            b"POST /a%2Fb%C3%A9/c?d=%20e&f HTTP/1.1",
            b"Content-Length: 5",
            b"Content-Type: text/plain",
            b"Accept: a",
            b"X-One:  padded \t",
            b"accept: b",
            b"Cookie: c=1",
            b"Cookie: d=2",
            b"X-Latin: \xe9",
            b"X-Empty:",
        )
    )
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b\xc3\xa9/c",
        "QUERY_STRING": "d=%20e&f",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": "5",
        "CONTENT_TYPE": "text/plain",
        "HTTP_HOST": "x",
        "HTTP_ACCEPT": "a,b",
        "HTTP_X_ONE": "padded",
        "HTTP_COOKIE": "c=1; d=2",
        "HTTP_X_LATIN": "\xe9",
        "HTTP_X_EMPTY": "",
    }


def test_a_name_with_an_underscore_does_not_pass_for_one_with_a_hyphen():
    data = head(b"GET / HTTP/1.1", b"X_User: forged", b"X-User: real", b"Content_Length: 5")
    environ = environ_of(data)
    assert environ["HTTP_X_USER"] == "real"
    assert not [key for key in environ if "LENGTH" in key]
    assert parse_head(data, CONFIG).content_length is None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_methods_of_http_are_taken(method):
    assert parse_head(head(f"{method} / HTTP/1.1".encode()), CONFIG).method == method


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://x/a?b", "/a", "x"),
        (b"http://x", "/", "x"),
        (b"HTTP://x?q", "/", "x"),
        (b"https://x:8/", "/", "x:8"),
    ],
)
def test_a_url_as_the_target_names_the_host(target, path, host):
    host_header = b"Host: " + host.encode()
    environ = environ_of(head(b"GET " + target + b" HTTP/1.1", host=host_header))
    assert (environ["PATH_INFO"], environ["HTTP_HOST"]) == (path, host)


def test_options_may_ask_about_the_whole_server():
    assert environ_of(head(b"OPTIONS * HTTP/1.1"))["PATH_INFO"] == "*"
    assert environ_of(head(b"OPTIONS http://x HTTP/1.1"))["PATH_INFO"] == "*"


@pytest.mark.parametrize(
    "host",
    [b"", b":", b":1", b"a.b:80", b"[::1]", b"[::1]:80", b"a:", b"127.0.0.1:12345", b"a_b~%41:1"],
)
def test_hosts(host):
    assert environ_of(head(host=b"Host: " + host))["HTTP_HOST"] == host.decode()


@pytest.mark.parametrize("host", [b"a:123456", b"a:b", b"a:1:2", b"a b", b"a/b", b"a%4", b"[::1]x"])
def test_hosts_that_are_none(host):
    assert refused(head(host=b"Host: " + host)).status == 400


@pytest.mark.parametrize("target", [b"/a b", b"/a#b", b"/\x7f", b"/ HTTP/1.1", b"/\xff"])
def test_targets_of_a_get_that_are_none(target):
    assert refused(head(b"GET " + target + b" HTTP/1.1")).status == 400


def test_an_environ_of_a_server_may_be_of_a_class_of_its_own():
    class Environ(dict):
        """Such as gevent's, which hides secrets in its repr."""

    environ = Environ(HTTP_X_OWN="1")
    data = head(b"GET /a HTTP/1.1", b"X-Own: 2", b"Upgrade: websocket", b"Connection: Upgrade")
    parse_head(data, CONFIG).add_to(environ)
    assert type(environ) is Environ
    assert (environ["PATH_INFO"], environ["HTTP_X_OWN"]) == ("/a", "1,2")
    assert is_upgrade(environ)


@pytest.mark.parametrize(
    ("line", "connection", "closes"),
    [
        (b"1.1", None, False),
        (b"1.1", b"close", True),
        (b"1.1", b"Upgrade, Close", True),
        (b"1.1", b"keep-alive", False),
        (b"1.0", None, True),
        (b"1.0", b"Keep-Alive", False),
    ],
)
def test_keep_alive_follows_the_version_and_the_connection_header(line, connection, closes):
    headers = [] if connection is None else [b"Connection: " + connection]
    assert parse_head(head(b"GET / HTTP/" + line, *headers), CONFIG).keep_alive is not closes


def test_http_1_0_needs_no_host():
    assert "HTTP_HOST" not in environ_of(head(b"GET / HTTP/1.0", host=None))


# -- what is refused


@pytest.mark.parametrize("path", ["/é", "/a/日本?b=ü", "/%C3%A9é"])
def test_a_target_in_raw_utf_8_is_taken_as_percent_encoded(path):
    """As websocket-client sends it."""
    data = head(f"GET {path} HTTP/1.1".encode())
    environ = {}
    parsed = parse_head(data, CONFIG)
    parsed.add_to(environ)
    assert parsed.target == quote(path, safe="/?=%")
    assert environ["PATH_INFO"].encode("latin-1").decode() == unquote(path.split("?")[0])
    assert parsed.size == len(data)
    assert parsed.headers[0] == (b"Host", b"x")


def test_a_tls_handshake_is_named_as_such():
    assert "This is a TLS handshake" in str(refused(REFUSED["TLS"][1]))


@pytest.mark.parametrize("follows", [b"", head()])
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),  # after its first CR LF, which is skipped
        b"\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),  # if both came one by one
    ],
)
def test_a_proxy_header_is_named_as_such(header, follows):
    assert "This is a PROXY header" in str(refused(header + follows))


def test_a_method_called_proxy_is_no_proxy_header_however_it_arrives():
    data = head(b"PROXY /x HTTP/1.1")
    for size in range(1, len(data)):
        assert find_head(data[:size], 0, CONFIG) == -1
    assert find_head(data, 0, CONFIG) == len(data)


def test_nothing_that_a_client_sends_is_kept_when_its_head_is_forgotten():
    value = b"x" * 20_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(300):
        data = head(b"GET / HTTP/1.1", b"User-Agent: %d" % i + value, b"X-%d" % i + value + b": a")
        environ = {}
        parse_head(data, Config(max_header_size=None)).add_to(environ)
        is_upgrade({"HTTP_UPGRADE": environ["HTTP_USER_AGENT"]})
    del data, environ
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 100_000


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_is_refused(name):
    status, data = REFUSED[name]
    error = refused(data)
    assert error.status == status
    answer = error_response(error)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in answer
    top, body = answer.split(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in top
    assert body.count(b"\n") == 1 and body.endswith(b".\n")
    assert not set(body[:-1]) - set(range(0x20, 0x7F)), "nothing raw of the request is echoed"


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02", b"GET / HTTP/1.1\n", b"GET /\r\n", b"GET / HTTP/1.1\r\nX\x00", b"\rG"],
)
def test_a_head_is_refused_as_soon_as_it_cannot_become_a_request(data):
    with pytest.raises(RequestError):
        find_head(data, 0, CONFIG)


def test_the_largest_that_is_allowed_is_taken():
    line = b"GET /" + b"a" * (8192 - len(b"GET / HTTP/1.1")) + b" HTTP/1.1"
    for data in (
        head(line),
        head(b"GET / HTTP/1.1", *[b"X: a"] * 99),
        head(b"GET / HTTP/1.1", b"X: " + b"a" * (32768 - len(b"Host: x\r\nX: \r\n\r\n"))),
    ):
        assert find_head(data, 0, CONFIG) == len(data)
        parse_head(data, CONFIG)


def test_limits_can_be_set_and_switched_off():
    small = Config(max_request_line=20, max_headers=2, max_header_size=30)
    assert refused(head(b"GET /" + b"a" * 12 + b" HTTP/1.1"), small).status == 414
    assert refused(head(b"GET / HTTP/1.1", b"A:b", b"C:d"), small).status == 431
    assert refused(head(b"GET / HTTP/1.1", b"A: " + b"b" * 30), small).status == 431
    none = Config(max_request_line=None, max_headers=None, max_header_size=None)
    data = head(b"GET /" + b"a" * 50_000 + b" HTTP/1.1", *[b"X: " + b"a" * 100] * 1000)
    assert find_head(data, 0, none) == len(data)
    assert len(parse_head(data, none).headers) == 1001


@given(st.data())
@examples(200)
def test_a_head_in_pieces_ends_where_the_whole_one_does(data):
    whole = head(b"GET /a HTTP/1.1", b"A: b", b"C:d") + b"behind"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=6)))
    buffer = bytearray()
    size = -1
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        seen = len(buffer)
        buffer += whole[begin:end]
        size = find_head(buffer, seen, CONFIG)
        if size >= 0:
            break
    assert size == len(whole) - len(b"behind")


# -- h11 as the judge

PIECES = [
    b"GET",
    b" ",
    b"/",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"\r\n",
    b"\r",
    b"\n",
    b"Host: x",
    b"Host:",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b":",
    b"\t",
    b"\x00",
    b"a",
    b"\xff",
    b",",
]


def judge(data: bytes) -> None:
    """Nothing but a RequestError is raised; and what is taken, h11 takes with the same meaning."""
    try:
        size = find_head(data, 0, CONFIG)
        if size < 0:
            return
        ours = parse_head(data[:size], CONFIG)
    except RequestError:
        return
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    line, rest = data[:size].split(b"\r\n", 1)
    # RFC 3986 has no raw UTF-8; here it is taken as if it were percent-encoded.
    line = re.sub(rb"[\x80-\xff]", lambda octet: b"%%%02X" % octet[0][0], line)
    connection.receive_data(line + b"\r\n" + rest)
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    assert ours.method == theirs.method.decode()
    assert theirs.target.decode().endswith(ours.target) or ours.target in ("/", "*")
    assert [(n.lower(), v) for n, v in ours.headers] == list(theirs.headers)
    framing = dict(theirs.headers)
    assert ours.chunked == (b"transfer-encoding" in framing)
    length = framing.get(b"content-length")
    assert ours.content_length == (None if length is None else int(length))


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from(PIECES)))
@examples(500)
def test_nothing_is_taken_that_h11_refuses(start, rest):
    judge(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(rest) + b"\r\n\r\n")
    judge(b"".join(start) + b"\r\n" + b"".join(rest) + b"\r\n\r\n")


@given(st.integers(0, 60), st.binary(min_size=1, max_size=3))
@examples(500)
def test_nothing_is_taken_that_h11_refuses_after_a_mutation(at, noise):
    data = head(b"POST /a?b HTTP/1.1", b"Content-Length: 12", b"X-A: b c")
    judge(data[:at] + noise + data[at + 1 :])
    judge(data[:at] + noise + data[at:])


@pytest.mark.parametrize("name", REFUSED)
def test_the_judge_agrees_with_the_table(name):
    judge(REFUSED[name][1])


# -- chunks


@pytest.mark.parametrize(
    ("line", "size"), [(b"0\r\n", 0), (b"a\r\n", 10), (b"00F;x=y\r\n", 15), (b"1 ; a\r\n", 1)]
)
def test_chunk_sizes(line, size):
    assert parse_chunk_size(line) == size


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r\n",
        b"5",
        b"5\n",
        b"5\r",
        b"-5\r\n",
        b"+5\r\n",
        b"0x5\r\n",
        b"5_0\r\n",
        b"g\r\n",
        b" 5\r\n",
        b"5;a\n",
        b"5;\n\r\n",
        b"5;\x00\r\n",
        b"f" * 16 + b"\r\n",
        b"5 5\r\n",
    ],
)
def test_malformed_chunk_sizes(line):
    with pytest.raises(RequestError):
        parse_chunk_size(line)


def test_trailers():
    assert parse_trailer(b"X-Sum: 5\r\n") is True
    assert parse_trailer(b"\r\n") is False


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"X\r\n", b"X : a\r\n", b" a\r\n", b"X: a\n", b":\r\n"]
)
def test_malformed_trailers(line):
    with pytest.raises(RequestError):
        parse_trailer(line)
