"""One request and its response over a ``Transport``, with the server or with a proxy."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from werkzeug.datastructures import Headers

from ..config import Config
from ..exceptions import HandshakeError
from ..http.response import ResponseReader
from ..hub.transport import FOREVER, TIMED_OUT, Transport

__all__ = ["Response", "exchange", "explain"]

_BODY_TIMEOUT = 2.0  # seconds for the body of a refusal, which is only for people
_SHOWN = 200  # bytes of it, in a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a message may be printed in a terminal


class Response(NamedTuple):
    """The server's response to a handshake. The names in ``headers`` are case-insensitive."""

    status: int
    headers: Headers


def exchange(
    transport: Transport, request: bytes, config: Config, is_tunnel: bool = False
) -> ResponseReader:
    """Sends ``request``, and blocks until the head of the response has been read, and the part of
    its body that arrives within two seconds.

    Raises:
        HandshakeError: the response is invalid.
        OSError: the connection is lost.
    """
    transport.send(request)
    reader = ResponseReader(config, is_tunnel)
    deadline = FOREVER
    while not reader.is_complete:
        size = transport.receive(deadline)
        if size == TIMED_OUT:
            break
        if size > 0:
            reader.feed(bytes(transport.buffer[:size]))
        elif transport.failure and not reader.status:
            raise ConnectionResetError(transport.failure)
        else:
            reader.feed_eof()
        if reader.status >= 200 and deadline == FOREVER:
            deadline = time.monotonic() + _BODY_TIMEOUT
    return reader


def _is_for_people(text: str, headers: Headers) -> bool:
    """Whether ``text``, the beginning of a body, is plain text, not a page or compressed bytes."""
    if text.startswith("<") or "html" in headers.get("Content-Type", ""):
        return False
    return headers.get("Content-Encoding", "identity").lower() in ("", "identity")


def text_for_people(body: bytes, headers: Headers) -> str:
    """The plain text of a response, on one line; empty if it has none."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return _CONTROL.sub("?", text) if _is_for_people(text, headers) else ""


def whole_text(error: HandshakeError) -> str:
    """``str(error)`` with the whole text of the response, not cut."""
    text = str(error)
    shown = text_for_people(error.body[:_SHOWN], error.headers) if error.body else ""
    if not shown or not text.endswith(shown):
        return text
    return text.removesuffix(shown) + text_for_people(error.body, error.headers)


def explain(error: HandshakeError, reader: ResponseReader, subject: str) -> HandshakeError:
    """``error`` with the status, headers and body of the response."""
    headers = Headers(reader.headers)
    message = str(error)
    if reader.status != 101:
        error.reason = "status"
        message = f"{subject} responded with status {reader.status}"
        text = text_for_people(reader.body[:_SHOWN], headers)
        if text:
            message += f": {text}"
    error.args = (message,)
    error.status = reader.status
    error.headers = headers
    error.body = reader.body
    return error
