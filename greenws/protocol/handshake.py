"""The opening handshake (RFC 6455, section 4), for both roles.

It uses no socket and no HTTP parser: a server's request is a WSGI environ, a client's response is a
status and a mapping of headers.
"""

from __future__ import annotations

import base64
import os
import re
import string
from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

try:
    # Python's own, in a third of the time: what OpenSSL does beside it takes longer than the hash.
    from _sha1 import sha1 as _sha1  # type: ignore[import-not-found]
except ImportError:  # Python was built without it
    import functools
    import hashlib

    _sha1 = functools.partial(hashlib.sha1, usedforsecurity=False)

from ..config import Config
from ..exceptions import HandshakeError
from ..grammar import TOKEN, changing_all_but
from .deflate import Extensions, Parameters, accept_answer, parse_extensions

__all__ = [
    "Offer",
    "accept_response",
    "check_headers",
    "check_protocol",
    "check_request_headers",
    "check_response",
    "check_subprotocols",
    "client_request",
    "count_of",
    "header_pairs",
    "is_upgrade",
    "new_key",
    "offer_in",
    "parse_offer",
    "parse_request",
    "read_choices",
]

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"
_SWITCHING = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: "
)
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_BASE64 = changing_all_but(string.ascii_letters.encode() + string.digits.encode() + b"+/")
_REQUIRED = 1 | 4 | 8 | 16 | 32  # bits of headers in offer_in
_CONNECTION = (b"upgrade", b"keep-alive, upgrade")  # as browsers and most libraries send it
_TOKEN = re.compile(TOKEN)
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
# The headers of a client's handshake that its caller cannot set, and how to set them instead.
_OWN_HEADERS = {
    "connection": "",
    "content-length": "",
    "sec-websocket-accept": "",
    "sec-websocket-extensions": ": use Config(deflate=...)",
    "sec-websocket-key": "",
    "sec-websocket-protocol": ": use subprotocols=",
    "sec-websocket-version": "",
    "transfer-encoding": "",
    "upgrade": "",
}
_NOT_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOP_BY_HOP = frozenset(  # RFC 9110, section 7.6.1, and the headers that frame a body
    "connection content-length keep-alive proxy-authenticate proxy-authorization proxy-connection "
    "te trailer transfer-encoding upgrade".split()
)


class Offer:
    """What a client asks for: the ``key`` as sent, and ``protocols`` and ``extensions`` in its
    order of preference. ``error``: what is malformed in these two, if anything."""

    def __init__(
        self,
        key: str,
        protocols: list[str],
        extensions: Extensions | None = None,
        error: HandshakeError | None = None,
    ) -> None:
        self.key = key
        self.protocols = protocols
        self.extensions = extensions or []
        self.error = error


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Whether a request asks for a WebSocket, even if its handshake is invalid.

    Without ``upgrade`` in ``Connection`` the ``Upgrade`` header is ignored (RFC 9110, section 7.8).
    """
    upgrade = environ.get("HTTP_UPGRADE")
    if upgrade is None or (upgrade != "websocket" and "websocket" not in _tokens(upgrade)):
        return False
    connection = environ.get("HTTP_CONNECTION", "")
    return connection == "Upgrade" or "upgrade" in _tokens(connection)


def parse_request(environ: Mapping[str, Any]) -> Offer:
    """Checks a client's opening handshake (RFC 6455, section 4.2.1).

    Raises:
        HandshakeError: with status 405 for a method other than GET, 426 for a request without
            upgrade or with another version, 400 for all other errors.
    """
    offer = _parse_request(environ)
    if offer.error is not None:
        raise offer.error
    return offer


def _parse_request(environ: Mapping[str, Any]) -> Offer:
    _check_method(environ)
    if not is_upgrade(environ):
        if "websocket" in _tokens(environ.get("HTTP_UPGRADE", "")):
            raise HandshakeError("The Connection header must contain 'Upgrade'.")
        raise _upgrade_required(
            "This is a WebSocket endpoint: the request must have the headers 'Upgrade: websocket' "
            "and 'Connection: Upgrade'. A proxy must forward both."
        )
    return parse_offer(environ)


def _check_method(environ: Mapping[str, Any]) -> None:
    if environ["REQUEST_METHOD"] != "GET":
        raise HandshakeError(
            f"A WebSocket handshake must be a GET request, not {environ['REQUEST_METHOD']}.",
            405,
            [("Allow", "GET")],
            "method",
        )


def parse_offer(environ: Mapping[str, Any]) -> Offer:
    """:func:`parse_request` for a request that :func:`is_upgrade` has recognised. An error in the
    subprotocols or extensions is only stored in ``error``, since middleware may change them."""
    found = environ if type(environ) is dict else dict(environ)
    _check_method(found)
    if found.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise HandshakeError("A WebSocket handshake requires HTTP/1.1.")
    if not found.get("HTTP_HOST"):
        raise HandshakeError("Missing Host header.")
    if found.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in found:
        raise HandshakeError("A WebSocket handshake must not have a body.")
    version = found.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version != _VERSION and version.strip(" \t") != _VERSION:
        raise _upgrade_required(
            f"Sec-WebSocket-Version must be {_VERSION}, not {version!r}."
            if version
            else f"Missing Sec-WebSocket-Version header; it must be {_VERSION}."
        )
    key = found.get("HTTP_SEC_WEBSOCKET_KEY", "").strip(" \t")
    if not _KEY.fullmatch(key):
        raise HandshakeError(
            "Sec-WebSocket-Key must be exactly one value of 16 bytes in base64."
            if key
            else "Missing Sec-WebSocket-Key header."
        )
    return read_choices(key, found)


def offer_in(headers: list[tuple[bytes, bytes]], fields: dict[str, Any]) -> Offer | None:
    """The offer of a handshake in the form that nearly all clients send, of a GET request of
    HTTP/1.1 without a body; None if its headers need :func:`parse_offer`, which is also what finds
    errors. The request's host and origin go to ``fields``, as in an environ."""
    key = host = origin = protocols = extensions = b""
    found = 0  # a bit for each header; a repeated one needs parse_offer
    for name, value in headers:
        size = len(name)
        bit = 0
        if size == 4:
            if name.lower() == b"host":
                bit, host = 1, value
        elif size == 6:
            if name.lower() == b"origin":
                bit, origin = 2, value
        elif size == 7:
            if name.lower() == b"upgrade":
                if value.lower() != b"websocket":
                    return None
                bit = 4
        elif size == 10:
            if name.lower() == b"connection":
                if value.lower() not in _CONNECTION:
                    return None
                bit = 8
        elif size == 17:
            if name.lower() == b"sec-websocket-key":
                bit, key = 16, value
        elif size == 21:
            if name.lower() == b"sec-websocket-version":
                if value != b"13":
                    return None
                bit = 32
        elif size == 22:
            if name.lower() == b"sec-websocket-protocol":
                bit, protocols = 64, value
        elif size == 24 and name.lower() == b"sec-websocket-extensions":
            bit, extensions = 128, value
        if bit:
            if found & bit:
                return None
            found |= bit
    if found & _REQUIRED != _REQUIRED or not host:
        return None
    digits = key[:22]
    if len(key) != 24 or key[22:] != b"==" or digits.translate(_BASE64) != digits:
        return None
    fields["HTTP_HOST"] = host.decode("latin-1")
    if found & 2:
        fields["HTTP_ORIGIN"] = origin.decode("latin-1")
    try:
        return Offer(
            key.decode("ascii"),
            _parse_protocols(protocols.decode("latin-1")) if found & 64 else [],
            parse_extensions(extensions.decode("latin-1")) if found & 128 else [],
        )
    except HandshakeError:
        return None


def read_choices(key: str, environ: Mapping[str, Any]) -> Offer:
    """The offer with the subprotocols and extensions that ``environ`` has."""
    protocols = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")
    extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS")
    try:
        return Offer(
            key,
            [] if protocols is None else _parse_protocols(protocols),
            [] if extensions is None else parse_extensions(extensions),
        )
    except HandshakeError as error:
        return Offer(key, [], error=error)


def accept_response(
    offer: Offer,
    subprotocol: str | None = None,
    deflate: Parameters | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The 101 response that accepts ``offer`` (RFC 6455, section 4.2.2).

    ``deflate``: what :func:`greenws.protocol.deflate.accept_offer` chose from ``offer.extensions``.
    ``headers``: additional ones, from :func:`check_headers`.

    Raises:
        HandshakeError: the client did not offer ``subprotocol``.
        TypeError: it is not a str.
    """
    response = _SWITCHING + _accept_value(offer.key)
    if subprotocol is not None:
        if subprotocol not in offer.protocols:
            check_kind(subprotocol)
            raise HandshakeError(
                f"The client did not offer the subprotocol {subprotocol!r}.",
                reason="subprotocol",
                hint=f"It offers {count_of(offer.protocols)}; in a "
                f"browser: new WebSocket(url, [{subprotocol!r}]).",
            )
        response += f"\r\nSec-WebSocket-Protocol: {subprotocol}"
    if deflate is not None:
        response += f"\r\nSec-WebSocket-Extensions: {deflate}"
    for name, value in headers:
        response += f"\r\n{name}: {value}"
    return (response + "\r\n\r\n").encode("latin-1")


def check_headers(headers: Any) -> list[tuple[str, str]]:
    """``headers`` (pairs of str, a mapping, or ``werkzeug.datastructures.Headers``) as pairs for a
    101 response.

    Raises:
        TypeError: ``headers`` is of another type.
        ValueError: a name or value is malformed (RFC 9110, sections 5.1 and 5.5), or the header is
            part of the handshake or of how HTTP frames messages.
    """
    if isinstance(headers, (str, bytes)):
        raise TypeError(f"response_headers must be pairs (name, value), not {headers!r}")
    try:
        pairs = list(headers.items() if hasattr(headers, "items") else headers)
    except TypeError:
        raise TypeError(f"response_headers must be pairs (name, value), not {headers!r}") from None
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"response_headers must be pairs (name, value), not {pair!r}")
        name, value = pair
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"response_headers must be pairs of str, not {pair!r}")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"response_headers: {name!r} is not the name of a header")
        if name.lower() in _HOP_BY_HOP or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"response_headers: {name} is not allowed, since greenws controls it")
        if _NOT_IN_VALUE.search(value) or not _is_latin_1(value):
            raise ValueError(
                f"response_headers: the value of {name} must be Latin-1 without control "
                f"characters, not {value!r}"
            )
    return [(name, value) for name, value in pairs]


def _is_latin_1(text: str) -> bool:
    return text.isascii() or max(text) <= "\xff"


def new_key() -> str:
    """A random ``Sec-WebSocket-Key``."""
    return base64.b64encode(os.urandom(16)).decode()


def client_request(
    host: str,
    target: str,
    key: str,
    protocols: Sequence[str] = (),
    extensions: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """A client's opening handshake (RFC 6455, section 4.1) for ``target`` (path and query).

    ``extensions``: what :func:`greenws.protocol.deflate.make_offer` returned. ``headers``:
    additional ones, from :func:`check_request_headers`. A ``Host`` among them replaces ``host``.
    """
    others = [f"{name}: {value}" for name, value in headers]
    lines = [f"GET {target} HTTP/1.1"]
    if not any(line[:5].lower() == "host:" for line in others):
        lines.append(f"Host: {host}")
    lines += [
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Version: {_VERSION}",
    ]
    if protocols:
        lines.append(f"Sec-WebSocket-Protocol: {', '.join(protocols)}")
    if extensions is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    lines += others
    for line in lines:
        if "\r" in line or "\n" in line:
            raise ValueError(f"line break in a handshake header: {line!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def check_response(
    status: int,
    headers: Mapping[str, str],
    key: str,
    protocols: Sequence[str] = (),
    config: Config | None = None,
) -> tuple[str | None, Parameters | None]:
    """Checks a server's response to ``key`` (section 4.1); returns the subprotocol and the deflate
    parameters that the server chose.

    The names in ``headers`` are in lower case. ``config`` made the offer of the extension; without
    it, none was offered.

    Raises:
        HandshakeError: the server refused the handshake, or its response is invalid. Its status is
            that of the response.
    """
    if status != 101:
        raise HandshakeError(f"The server responded with status {status}, not 101.", status)
    if _tokens(headers.get("upgrade", "")) != ["websocket"]:
        raise _invalid(headers, "upgrade", "'websocket'")
    if "upgrade" not in _tokens(headers.get("connection", "")):
        raise _invalid(headers, "connection", "'Upgrade'")
    if headers.get("sec-websocket-accept", "").strip(" \t") != _accept_value(key):
        if "sec-websocket-accept" not in headers:
            raise HandshakeError("The server's response has no Sec-WebSocket-Accept.", 101)
        raise HandshakeError("The server's Sec-WebSocket-Accept does not match the key.", 101)
    try:
        extensions = parse_extensions(headers.get("sec-websocket-extensions", ""))
        deflate = accept_answer(extensions, config or Config(deflate=False))
    except HandshakeError as error:
        raise HandshakeError(str(error), 101, reason="extension") from None
    subprotocol = headers.get("sec-websocket-protocol")
    if subprotocol is not None and subprotocol not in protocols:
        offered = ", ".join(map(repr, protocols)) or "none"
        raise HandshakeError(
            f"The server chose a subprotocol that was not offered: {subprotocol!r} "
            f"(offered: {offered}).",
            101,
            reason="subprotocol",
        )
    return subprotocol, deflate


def _invalid(headers: Mapping[str, str], name: str, expected: str) -> HandshakeError:
    got = repr(headers[name]) if name in headers else "missing"
    return HandshakeError(
        f"The server's {name.capitalize()} header must be {expected}; it is {got}.", 101
    )


def check_request_headers(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
) -> list[tuple[str, str]]:
    """The names and values of a client's additional ``headers``.

    Raises:
        TypeError: they are not pairs, or a name or a value is not a str.
        ValueError: a name or a value is not allowed (RFC 9110, section 5), or the header is one
            that the handshake sets itself.
    """
    checked = []
    for name, value in header_pairs(headers):
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"names and values of headers must be str, not {name!r}: {value!r}")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"the handshake sets {name} itself{_OWN_HEADERS[name.lower()]}")
        value = value.strip(" \t")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(
                f"header {name}: {value!r} has a control character, or one that is not Latin-1"
            )
        checked.append((name, value))
    return checked


def header_pairs(headers: Any) -> list[tuple[Any, Any]]:
    """The items of a mapping, or the given pairs; an empty list for None.

    Raises:
        TypeError: they are neither.
    """
    pairs = () if headers is None else headers.items() if isinstance(headers, Mapping) else headers
    if isinstance(pairs, Iterable) and not isinstance(pairs, (str, bytes)):
        found = list(pairs)
        if all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in found):
            return [(name, value) for name, value in found]
    raise TypeError(f"headers must be a mapping or pairs (name, value), not {headers!r}")


def check_subprotocols(protocols: Sequence[str] | None) -> list[str]:
    """The subprotocols that a client offers.

    Raises:
        TypeError: they are not a sequence of str.
        ValueError: one is not a token (RFC 6455, section 4.1), or is given twice.
    """
    if isinstance(protocols, (str, bytes)):
        raise TypeError(f"subprotocols must be a list of str, such as [{protocols!r}]")
    if protocols is None:
        return []
    if not isinstance(protocols, Iterable):
        raise TypeError(f"subprotocols must be a list of str, such as ['chat'], not {protocols!r}")
    protocols = list(protocols)
    for protocol in protocols:
        check_protocol(protocol)
    if len(set(protocols)) < len(protocols):
        raise ValueError(f"duplicate subprotocol: {', '.join(protocols)}")
    return protocols


def check_kind(protocol: Any) -> None:
    """
    Raises:
        TypeError: it is not a str.
    """
    if not isinstance(protocol, str):
        raise TypeError(f"subprotocols must be str, not {protocol!r}")


def check_protocol(protocol: Any) -> None:
    """
    Raises:
        TypeError: it is not a str.
        ValueError: it is not a token (RFC 6455, section 4.1).
    """
    check_kind(protocol)
    if not _TOKEN.fullmatch(protocol):
        raise ValueError(f"subprotocol {protocol!r} is not a token")


def count_of(protocols: Sequence[str]) -> str:
    """The number of subprotocols, for the log. Not their names: pages put login tokens there."""
    return str(len(protocols)) if protocols else "none"


def _upgrade_required(message: str) -> HandshakeError:
    # The server adds the Upgrade and Connection headers of a 426: a WSGI application must not.
    return HandshakeError(message, 426, [("Sec-WebSocket-Version", _VERSION)], "version")


def _accept_value(key: str) -> str:
    text = key + _GUID
    value: bytes = b2a_base64(_sha1(text.encode("latin-1")).digest(), newline=False)
    return value.decode("ascii")


def _tokens(header: str) -> list[str]:
    return [token for part in header.lower().split(",") if (token := part.strip(" \t"))]


def _parse_protocols(header: str) -> list[str]:
    # Empty list elements are ignored (RFC 9110, section 5.6.1).
    protocols = [name for part in header.split(",") if (name := part.strip(" \t"))]
    if not protocols:
        raise HandshakeError("Sec-WebSocket-Protocol is empty.")
    for protocol in protocols:
        if not _TOKEN.fullmatch(protocol):
            raise HandshakeError(f"Sec-WebSocket-Protocol: {protocol!r} is not a token.")
    if len(set(protocols)) < len(protocols):
        raise HandshakeError("Sec-WebSocket-Protocol has a duplicate subprotocol.")
    return protocols
