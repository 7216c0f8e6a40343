"""The opening handshake (RFC 6455, section 4), both roles."""

from __future__ import annotations

import base64
import subprocess
import sys
from types import MappingProxyType

import pytest

from greenws.config import Config
from greenws.exceptions import HandshakeError
from greenws.protocol.deflate import Parameters, make_offer
from greenws.protocol.handshake import (
    Offer,
    accept_response,
    check_response,
    client_request,
    is_upgrade,
    new_key,
    offer_in,
    parse_request,
)

from ..support import wire
from ..support.sansio import environ_of

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def environ(*, method: str = "GET", version: str = "1.1", **headers) -> dict:
    return environ_of(wire.request("/chat?x=1", method=method, version=version, **headers))


def refused(*, status: int, match: str | None = None, **changes) -> HandshakeError:
    with pytest.raises(HandshakeError, match=match) as caught:
        parse_request(environ(**changes))
    assert caught.value.status == status
    text = str(caught.value)
    assert text.endswith((".", ")")) and "\n" not in text
    return caught.value


# -- a request that is accepted


def test_the_example_of_the_rfc_is_accepted():
    offer = parse_request(environ(Sec_WebSocket_Protocol="chat, superchat"))
    assert offer.key == KEY
    assert offer.protocols == ["chat", "superchat"]
    assert accept_response(offer, "chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )


def test_without_a_subprotocol_the_answer_has_no_such_header():
    response = accept_response(parse_request(environ(Sec_WebSocket_Protocol="chat")))
    assert b"sec-websocket-protocol" not in response.lower()
    assert response.count(b"\r\n\r\n") == 1 and response.endswith(b"\r\n\r\n")


def test_no_subprotocol_offered_is_an_empty_list():
    assert parse_request(environ()).protocols == []


def headers_of(data: bytes) -> list[tuple[bytes, bytes]]:
    lines = data.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"},
        {"Sec_WebSocket_Protocol": "a,  b"},
        {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits, x"},
        {"Origin": "http://a", "Cookie": "a=b", "X": ""},
        {"Accept": "a\r\nAccept: b", "Sec_Fetch_Mode": "websocket"},
    ],
)
def test_an_offer_in_the_usual_form_is_found_in_the_headers(changes):
    data = wire.request("/chat", **changes)
    for spelling in (lambda name: name, bytes.lower, bytes.upper):
        headers = [(spelling(name), value) for name, value in headers_of(data)]
        fields: dict = {}
        offer = offer_in(headers, fields)
        expected = parse_request(environ_of(data))
        assert offer is not None and offer.error is None
        assert (offer.key, offer.protocols) == (expected.key, expected.protocols)
        assert offer.extensions == expected.extensions
        names = ("HTTP_HOST", "HTTP_ORIGIN")
        assert fields == {
            name: environ_of(data)[name] for name in names if name in environ_of(data)
        }


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("Upgrade", "Connection", "Host")),
        *({name: None} for name in ("Sec_WebSocket_Key", "Sec_WebSocket_Version")),
        *({"Upgrade": value} for value in ("", "h2c", "websocket2", "h2c, websocket")),
        *({"Connection": value} for value in ("", "close", "keep-alive", "close, Upgrade")),
        *({"Sec_WebSocket_Version": value} for value in ("", "8", "013", "13, 8")),
        *(
            {"Sec_WebSocket_Key": value}
            for value in ("", KEY[:-1], KEY + "=", "A" * 24, "-" + KEY[1:])
        ),
        *({"Sec_WebSocket_Protocol": value} for value in ("", "a b", "a, a", "é")),
        {"Sec_WebSocket_Extensions": "a; b; ="},
        {"Host": ""},
        *(
            {name: f"{value}\r\n{name.replace('_', '-')}: {value}"}
            for name, value in (
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Host", "a"),
                ("Origin", "http://a"),
                ("Sec_WebSocket_Key", KEY),
                ("Sec_WebSocket_Version", "13"),
                ("Sec_WebSocket_Protocol", "a"),
                ("Sec_WebSocket_Extensions", "a"),
            )
        ),
    ],
)
def test_an_offer_in_any_other_form_is_left_to_the_environ(changes):
    assert offer_in(headers_of(wire.request("/chat", **changes)), {}) is None


def test_extensions_are_answered_only_if_one_was_chosen():
    offer = parse_request(environ(Sec_WebSocket_Extensions="permessage-deflate; a=b, c"))
    assert offer.extensions == [("permessage-deflate", [("a", "b")]), ("c", [])]
    assert b"extensions" not in accept_response(offer).lower()
    answer = accept_response(offer, deflate=Parameters(True, False, 9))
    assert answer.endswith(
        b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        b"server_max_window_bits=9\r\n\r\n"
    )


def test_malformed_extensions_are_refused():
    with pytest.raises(HandshakeError, match="Extensions is malformed") as caught:
        parse_request(environ(Sec_WebSocket_Extensions="permessage-deflate; ="))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "connection",
    [
        "Upgrade",
        "upgrade",
        "UPGRADE",
        "keep-alive, Upgrade",
        "Upgrade, keep-alive",
        "keep-alive,upgrade",
        "keep-alive ,\t Upgrade ,x",
        ", Upgrade,",
    ],
)
def test_connection_is_a_list_of_tokens_in_any_case(connection):
    assert is_upgrade(environ(Connection=connection))
    assert parse_request(environ(Connection=connection)).key == KEY


@pytest.mark.parametrize(
    "upgrade", ["websocket", "WebSocket", "WEBSOCKET", "h2c, websocket", "websocket,x"]
)
def test_upgrade_is_a_list_of_tokens_in_any_case(upgrade):
    assert is_upgrade(environ(Upgrade=upgrade))
    assert parse_request(environ(Upgrade=upgrade)).key == KEY


@pytest.mark.parametrize("length", ["0", ""])
def test_an_empty_body_is_no_body(length):
    assert parse_request({**environ(), "CONTENT_LENGTH": length}).key == KEY


@pytest.mark.parametrize(
    ("header", "protocols"),
    [
        ("chat", ["chat"]),
        ("b,a", ["b", "a"]),
        (" a ,\tb ", ["a", "b"]),
        ("v10.stomp, v11.stomp", ["v10.stomp", "v11.stomp"]),
        ("Chat, chat", ["Chat", "chat"]),  # subprotocols are case-sensitive
        ("!#$%&'*+-.^_`|~09azAZ", ["!#$%&'*+-.^_`|~09azAZ"]),
        (",a,, b,", ["a", "b"]),  # empty elements of a list mean nothing (RFC 9110, 5.6.1)
    ],
)
def test_subprotocols_are_taken_in_the_clients_order(header, protocols):
    assert parse_request(environ(Sec_WebSocket_Protocol=header)).protocols == protocols


def test_subprotocols_may_come_in_several_headers():
    raw = wire.request(Sec_WebSocket_Protocol="a").replace(
        b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: b, c\r\n\r\n"
    )
    assert parse_request(environ_of(raw)).protocols == ["a", "b", "c"]


# -- refusals


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get"])
def test_another_method_is_405_and_names_the_one_allowed(method):
    error = refused(method=method, status=405, match=method)
    assert error.headers == [("Allow", "GET")]


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": None},
        {"Upgrade": None, "Connection": None},
        {"Upgrade": None, "Connection": "keep-alive"},
        {"Upgrade": "h2c"},
        {"Upgrade": "websockets"},
        {"Upgrade": "my-websocket"},
        {"Upgrade": ""},
    ],
)
def test_a_plain_get_gets_426_with_upgrade_headers(changes):
    error = refused(status=426, match="Upgrade: websocket", **changes)
    assert error.headers == [("Sec-WebSocket-Version", "13")]
    assert not is_upgrade(environ(**changes))


@pytest.mark.parametrize("connection", [None, "", "keep-alive", "close", "upgrades", "x-upgrade"])
def test_an_upgrade_without_connection_is_refused(connection):
    refused(Connection=connection, status=400, match="Connection")
    assert not is_upgrade(environ(Connection=connection))


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.0"])
def test_another_version_of_http_is_refused(version):
    refused(version=version, status=400, match="HTTP/1.1")


@pytest.mark.parametrize("host", [None, ""])
def test_a_missing_host_is_refused(host):
    refused(Host=host, status=400, match="Host")


@pytest.mark.parametrize(
    "body",
    [{"Content_Length": "1"}, {"Content_Length": "1000"}, {"Transfer_Encoding": "chunked"}],
)
def test_an_announced_body_is_refused(body):
    refused(status=400, match="body", **body)


@pytest.mark.parametrize("version", [None, "", "8", "7", "0", "12", "14", "013", "13, 8", "13.0"])
def test_an_unsupported_version_is_426_and_names_the_supported_one(version):
    error = refused(Sec_WebSocket_Version=version, status=426, match="13")
    assert error.headers == [("Sec-WebSocket-Version", "13")]


def test_a_refusal_names_the_wrong_version_or_calls_it_missing():
    assert "Missing Sec" in str(refused(Sec_WebSocket_Version=None, status=426))
    assert "'8'" in str(refused(Sec_WebSocket_Version="8", status=426))


@pytest.mark.parametrize(
    "key",
    [
        "x",
        "dGhlIHNhbXBsZSBub25jZQ",  # without padding
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQ===",
        base64.b64encode(b"x" * 15).decode(),
        base64.b64encode(b"x" * 17).decode(),
        base64.b64encode(b"x" * 12).decode(),
        base64.b64encode(b"x" * 32).decode(),
        "dGhlIHNhbXBsZSBub25j!!==",
        "dGhlIHNhbXBs ZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25j-_==",
        "dGhlIHNhbXBsZSBub25jZ\xe9==",
        KEY + "," + KEY,  # the header came twice
        KEY + KEY,
    ],
)
def test_a_malformed_key_is_refused(key):
    refused(Sec_WebSocket_Key=key, status=400, match="exactly one value of 16 bytes")


@pytest.mark.parametrize("key", [None, ""])
def test_the_error_says_that_the_key_is_missing(key):
    refused(Sec_WebSocket_Key=key, status=400, match="Missing Sec-WebSocket-Key")


def test_a_key_followed_by_a_line_feed_is_not_echoed():
    offer = parse_request({**environ(), "HTTP_SEC_WEBSOCKET_KEY": KEY + "\n"})
    assert offer.key == KEY


@pytest.mark.parametrize(
    "header", ["a b", "a;b", 'a"', "(a)", "a/b", "caf\xe9", "a=b", "[]", "a, b c", "a\x7f"]
)
def test_a_malformed_subprotocol_is_refused(header):
    refused(Sec_WebSocket_Protocol=header, status=400, match="not a token")


@pytest.mark.parametrize("header", ["", ",", " , ,"])
def test_an_empty_list_of_subprotocols_is_refused(header):
    refused(Sec_WebSocket_Protocol=header, status=400, match="is empty")


def test_a_subprotocol_offered_twice_is_refused():
    refused(Sec_WebSocket_Protocol="a, b, a", status=400, match="duplicate subprotocol")


def test_the_application_may_only_choose_an_offered_subprotocol():
    offer = Offer(KEY, ["superchat"])
    for choice in ("chat", "", "Superchat", "superchat\r\nX: y"):
        with pytest.raises(HandshakeError, match="did not offer") as caught:
            accept_response(offer, choice)
        assert caught.value.status == 400


# -- the client


def test_a_clients_request_is_the_one_of_the_rfc():
    assert client_request("server.example.com", "/chat?a=b", KEY, ["chat", "superchat"]) == (
        b"GET /chat?a=b HTTP/1.1\r\n"
        b"Host: server.example.com\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\n"
        b"\r\n"
    )


def test_without_subprotocols_the_request_has_no_such_header():
    request = client_request("h", "/", KEY)
    assert b"Sec-WebSocket-Protocol" not in request
    assert request.endswith(b"Sec-WebSocket-Version: 13\r\n\r\n")


def test_a_new_key_is_16_random_bytes():
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


def response(**changes) -> dict[str, str]:
    headers = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT}
    for name, value in changes.items():
        key = name.replace("_", "-")
        headers.pop(key, None)
        if value is not None:
            headers[key] = value
    return headers


def test_the_answer_of_the_rfc_is_taken():
    assert check_response(101, response(), KEY) == (None, None)
    assert check_response(101, response(), KEY, ["chat"]) == (None, None)
    chosen = response(sec_websocket_protocol="chat")
    assert check_response(101, chosen, KEY, ["superchat", "chat"]) == ("chat", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"upgrade": "WebSocket"},
        {"connection": "keep-alive, UPGRADE"},
        {"sec_websocket_accept": f" {ACCEPT} "},
        {"sec_websocket_extensions": ""},
    ],
)
def test_an_answer_may_be_written_otherwise(changes):
    assert check_response(101, response(**changes), KEY) == (None, None)


@pytest.mark.parametrize("status", [200, 100, 204, 301, 400, 401, 404, 426, 500])
def test_another_status_is_a_refusal_and_is_passed_on(status):
    with pytest.raises(HandshakeError, match=str(status)) as caught:
        check_response(status, response(), KEY)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"upgrade": None}, "Upgrade header"),
        ({"upgrade": "h2c"}, "Upgrade header"),
        ({"upgrade": "websocket, h2c"}, "Upgrade header"),
        ({"upgrade": "websockets"}, "Upgrade header"),
        ({"connection": None}, "Connection header"),
        ({"connection": "close"}, "Connection header"),
        ({"sec_websocket_accept": None}, "Accept"),
        ({"sec_websocket_accept": ""}, "Accept"),
        ({"sec_websocket_accept": ACCEPT.lower()}, "Accept"),
        ({"sec_websocket_accept": KEY}, "Accept"),
        ({"sec_websocket_extensions": "permessage-deflate"}, "extension"),
        ({"sec_websocket_protocol": "other"}, "'other'"),
        ({"sec_websocket_protocol": "Chat"}, "'Chat'"),
        ({"sec_websocket_protocol": "chat, superchat"}, "chat, superchat"),
        ({"sec_websocket_protocol": ""}, "''"),
    ],
)
def test_an_answer_that_does_not_fit_the_request_is_refused(changes, match):
    with pytest.raises(HandshakeError, match=match):
        check_response(101, response(**changes), KEY, ["chat", "superchat"])


def test_the_answer_to_an_offer_of_extensions_is_checked():
    config = Config()
    request = client_request("a", "/", KEY, extensions=make_offer(config)).decode()
    assert "\r\nSec-WebSocket-Extensions: permessage-deflate; " in request
    assert check_response(101, response(), KEY, config=config) == (None, None)
    chosen = response(sec_websocket_extensions="permessage-deflate; server_no_context_takeover")
    assert check_response(101, chosen, KEY, config=config) == (None, Parameters(True, True))
    chosen = response(sec_websocket_extensions="permessage-deflate")
    with pytest.raises(HandshakeError, match="server_no_context_takeover"):
        check_response(101, chosen, KEY, config=config)


def test_a_subprotocol_that_was_not_offered_is_refused():
    with pytest.raises(HandshakeError, match="chat"):
        check_response(101, response(sec_websocket_protocol="chat"), KEY)


def test_the_accept_of_another_key_is_refused():
    with pytest.raises(HandshakeError, match="does not match the key"):
        check_response(101, response(), new_key())


@pytest.mark.parametrize("space", ["\xa0", "\x85", "\x0b"])
def test_only_spaces_and_tabs_are_allowed_around_a_value(space):
    """``str.strip()`` removes more."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    headers = {"upgrade": "websocket", "connection": "Upgrade"}
    check_response(101, {**headers, "sec-websocket-accept": f" {accept}\t"}, key)
    with pytest.raises(HandshakeError, match="does not match the key"):
        check_response(101, {**headers, "sec-websocket-accept": space + accept}, key)


_WITHOUT = """
import sys
sys.modules["_sha1"] = None
from greenws.protocol.handshake import Offer, accept_response
print(accept_response(Offer("dGhlIHNhbXBsZSBub25jZQ==", [])).decode())
"""


def test_a_python_without_its_own_sha1_uses_that_of_openssl():
    run = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True)
    assert f"Sec-WebSocket-Accept: {ACCEPT}" in run.stdout, run.stderr


def test_a_request_of_any_mapping_is_checked():
    offer = parse_request(MappingProxyType(environ(Sec_WebSocket_Protocol="chat")))
    assert (offer.key, offer.protocols, offer.extensions) == (KEY, ["chat"], [])
