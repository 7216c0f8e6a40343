"""The opening handshake (RFC 6455, section 4): headers in, an acceptance or a refusal out.

Both roles; no socket and no HTTP parser: a server's request comes as a WSGI environ, a client's
response as a status and a mapping of headers.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Config
from ..exceptions import HandshakeError
from .deflate import Extensions, Parameters, accept_answer, parse_extensions

__all__ = [
    "Offer",
    "accept_response",
    "check_response",
    "client_request",
    "is_upgrade",
    "new_key",
    "parse_request",
]

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # base64 of 16 bytes
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Offer:
    """What a client asked for: ``key`` as it was sent, ``protocols`` and ``extensions`` in its
    order of preference."""

    def __init__(
        self, key: str, protocols: list[str], extensions: Extensions | None = None
    ) -> None:
        self.key = key
        self.protocols = protocols
        self.extensions = extensions or []


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Whether a request asks for a WebSocket, well formed or not.

    Without ``upgrade`` in ``Connection`` the ``Upgrade`` header says nothing (RFC 9110, 7.8).
    """
    upgrade = environ.get("HTTP_UPGRADE")
    if upgrade is None or (upgrade != "websocket" and "websocket" not in _tokens(upgrade)):
        return False
    connection = environ.get("HTTP_CONNECTION", "")
    return connection == "Upgrade" or "upgrade" in _tokens(connection)


def parse_request(environ: Mapping[str, Any]) -> Offer:
    """Checks a client's opening handshake (RFC 6455, section 4.2.1).

    Raises:
        HandshakeError: with the status and the line to answer with: 405 for a method other than
            GET, 426 for a plain request or another version, 400 for everything else.
    """
    if environ["REQUEST_METHOD"] != "GET":
        raise HandshakeError(
            f"A WebSocket handshake is a GET request, not {environ['REQUEST_METHOD']}.",
            405,
            [("Allow", "GET")],
            "method",
        )
    if not is_upgrade(environ):
        if "websocket" in _tokens(environ.get("HTTP_UPGRADE", "")):
            raise HandshakeError("The Connection header must contain 'Upgrade'.")
        raise _upgrade_required(
            "This is a WebSocket endpoint: the request must carry 'Upgrade: websocket' and "
            "'Connection: Upgrade'. (A proxy in between has to pass both on.)"
        )
    if environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise HandshakeError("A WebSocket handshake needs HTTP/1.1.")
    if not environ.get("HTTP_HOST"):
        raise HandshakeError("The Host header is missing.")
    if environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise HandshakeError("A WebSocket handshake has no body.")
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version.strip() != _VERSION:
        raise _upgrade_required(
            f"Sec-WebSocket-Version must be {_VERSION}, not {version!r}."
            if version
            else f"The Sec-WebSocket-Version header is missing; it must be {_VERSION}."
        )
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    if not _KEY.fullmatch(key):
        raise HandshakeError(
            "Sec-WebSocket-Key must be 16 bytes in base64, once."
            if key
            else "The Sec-WebSocket-Key header is missing."
        )
    return Offer(
        key,
        _parse_protocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")),
        parse_extensions(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")),
    )


def accept_response(
    offer: Offer, subprotocol: str | None = None, deflate: Parameters | None = None
) -> bytes:
    """The 101 that accepts ``offer`` (RFC 6455, section 4.2.2), head and all.

    ``deflate``: what :func:`greenws.deflate.accept_offer` chose from ``offer.extensions``.

    Raises:
        HandshakeError: the client did not offer ``subprotocol``.
    """
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {_accept_value(offer.key)}",
    ]
    if subprotocol is not None:
        if subprotocol not in offer.protocols:
            raise HandshakeError(
                f"The client does not offer the subprotocol {subprotocol!r}.", reason="subprotocol"
            )
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if deflate is not None:
        lines.append(f"Sec-WebSocket-Extensions: {deflate}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def new_key() -> str:
    """A fresh ``Sec-WebSocket-Key``."""
    return base64.b64encode(os.urandom(16)).decode()


def client_request(
    host: str,
    target: str,
    key: str,
    protocols: Sequence[str] = (),
    extensions: str | None = None,
) -> bytes:
    """A client's opening handshake (RFC 6455, section 4.1) for ``target`` (path and query).

    ``extensions``: what :func:`greenws.deflate.make_offer` offers.
    """
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Version: {_VERSION}",
    ]
    if protocols:
        lines.append(f"Sec-WebSocket-Protocol: {', '.join(protocols)}")
    if extensions is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    for line in lines:
        if "\r" in line or "\n" in line:
            raise ValueError(f"a handshake cannot carry the line break in {line!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def check_response(
    status: int,
    headers: Mapping[str, str],
    key: str,
    protocols: Sequence[str] = (),
    config: Config | None = None,
) -> tuple[str | None, Parameters | None]:
    """Checks a server's answer to ``key`` (section 4.1); returns the subprotocol that it chose, and
    what it made of the extensions that ``config`` offers.

    ``headers`` finds names in lower case. Without ``config`` no extension was offered.

    Raises:
        HandshakeError: the server refused, or its answer proves that it did not understand.
    """
    if status != 101:
        raise HandshakeError(f"The server answered {status}, not 101.", status)
    if _tokens(headers.get("upgrade", "")) != ["websocket"]:
        raise HandshakeError("The server's Upgrade header is not 'websocket'.")
    if "upgrade" not in _tokens(headers.get("connection", "")):
        raise HandshakeError("The server's Connection header does not contain 'Upgrade'.")
    if headers.get("sec-websocket-accept", "").strip() != _accept_value(key):
        raise HandshakeError("The server's Sec-WebSocket-Accept does not answer the key.")
    extensions = parse_extensions(headers.get("sec-websocket-extensions", ""))
    deflate = accept_answer(extensions, config or Config(deflate=False))
    subprotocol = headers.get("sec-websocket-protocol")
    if subprotocol is not None and subprotocol not in protocols:
        raise HandshakeError(f"The server chose a subprotocol not offered: {subprotocol!r}.")
    return subprotocol, deflate


def _upgrade_required(message: str) -> HandshakeError:
    # The server adds the Upgrade and Connection that belong to a 426: a WSGI application may not.
    return HandshakeError(message, 426, [("Sec-WebSocket-Version", _VERSION)], "version")


def _accept_value(key: str) -> str:
    digest = hashlib.sha1((key + _GUID).encode("latin-1"), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def _tokens(header: str) -> list[str]:
    return [token for part in header.lower().split(",") if (token := part.strip(" \t"))]


def _parse_protocols(header: str | None) -> list[str]:
    if header is None:
        return []
    # Empty elements of a list mean nothing (RFC 9110, 5.6.1).
    protocols = [name for part in header.split(",") if (name := part.strip(" \t"))]
    if not protocols:
        raise HandshakeError("Sec-WebSocket-Protocol names no subprotocol.")
    for protocol in protocols:
        if not _TOKEN.fullmatch(protocol):
            raise HandshakeError(f"Sec-WebSocket-Protocol: {protocol!r} is not a token.")
    if len(set(protocols)) < len(protocols):
        raise HandshakeError("Sec-WebSocket-Protocol names a subprotocol twice.")
    return protocols
