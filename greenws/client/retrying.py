"""``reconnect()``: connects again and again, with pauses that grow while attempts fail."""

from __future__ import annotations

import email.utils
import logging
import random
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import timezone
from typing import Any

import gevent

from ..checks import check_function, explains
from ..config import Config, check_seconds
from ..exceptions import ConnectionClosed, HandshakeError
from ..opcodes import CloseCode
from ..websocket import WebSocket
from .opening import HINTS, Request, open_socket

__all__ = ["is_permanent", "reconnect"]

_logger = logging.getLogger("greenws.client")

Headers = Mapping[str, str] | Iterable[tuple[str, str]] | None

# Refusals that may pass: timeouts, rate limits, servers that restart; from 520 on, those of a proxy
# (Cloudflare's) that does not reach the server.
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 531)})
_MAX_RETRY_AFTER = 86_400.0  # seconds; a server that asks for more gets this
_MAX_DOUBLINGS = 30


class _Reconnected(WebSocket):
    """A socket whose ``with`` block ends, without an error, when the connection does."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        is_ours = isinstance(error, ConnectionClosed) and not self.is_connected
        super().__exit__(kind, error, traceback)
        return is_ours


def is_permanent(error: Exception) -> bool:
    """Whether :func:`reconnect` gives up, because another attempt would fail in the same way.

    True for a certificate that is not trusted, for a refusal with a status other than 408, 425,
    429, 500, 502, 503, 504 and 520 to 530, and for an acceptance (101) that is invalid. False for
    errors that a network failure or a restart may have caused, and for an answer without a
    usable status, of a server or a proxy.
    """
    if isinstance(error, HandshakeError):
        return error.status not in _TEMPORARY and error.status != 0
    return isinstance(error, (ssl.SSLCertVerificationError, ValueError, TypeError))


@explains(
    "greenws.reconnect('ws://host/path')",
    HINTS
    | dict.fromkeys(("delay", "backoff"), "write min_delay= and max_delay=")
    | dict.fromkeys(
        ("retries", "max_retries", "attempts", "max_attempts"),
        "write give_up=, a function that says whether to raise an error and stop",
    ),
)
def reconnect(
    url: str | Callable[[], str],
    *,
    min_delay: float = 1.0,
    max_delay: float = 60.0,
    give_up: Callable[[Exception], bool] = is_permanent,
    on_error: Callable[[Exception, float], object] | None = None,
    headers: Headers | Callable[[], Headers] = None,
    subprotocols: Sequence[str] | None = (),
    origin: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: bool | str | None = True,
    open_timeout: float | None = 10.0,
    config: Config | None = None,
) -> Generator[WebSocket, None, None]:
    """Connects again whenever the connection has ended, for ever, until the loop is left::

        for socket in greenws.reconnect("wss://example.com/feed"):
            with socket:
                socket.send("hello again")
                for message in socket:
                    print(message)

    The ``with`` block of such a socket ends without an error when the connection does, however it
    was closed. Any other exception leaves the loop.

    There is a pause before each further attempt: ``min_delay`` seconds, doubled after each failed
    attempt, up to ``max_delay``. A random part of it, up to half, is left out, so that the clients
    of a server that restarts do not come back together. After a connection that lasted longer than
    its pause, the next pause is the shortest again. If a server asks for a longer pause
    (``Retry-After``, up to a day), it gets that.

    ``give_up(error)`` returns whether to raise ``error`` and stop; the default is
    :func:`greenws.client.is_permanent`, and ``lambda error: False`` never gives up.
    ``on_error(error, delay)`` is called before each pause, of ``delay`` seconds, with an OSError or
    HandshakeError, or with the ConnectionClosed of a connection that has ended. An exception that
    it raises leaves the loop. By default these are logged to ``greenws.client``: a warning for a
    failed attempt, an info for a connection that has ended.

    ``url`` and ``headers`` may be functions, which are called before each attempt: a token may have
    changed, or the position in a room's history. For the other arguments see
    :func:`greenws.connect`.

    Raises:
        OSError, HandshakeError: the attempt failed, and ``give_up`` says to stop.
        ValueError, TypeError: as :func:`greenws.connect`, at the first attempt. TypeError is raised
            at once if ``give_up`` or ``on_error`` does not accept these arguments.
    """
    check_seconds("min_delay", min_delay)
    check_seconds("max_delay", max_delay)
    if min_delay > max_delay:
        raise ValueError(f"min_delay ({min_delay}) must not be above max_delay ({max_delay})")
    check_function(give_up, "give_up", "error")
    if on_error is not None:
        check_function(on_error, "on_error", "error", "delay")
    return _reconnect(
        url,
        headers,
        _Backoff(min_delay, max_delay),
        give_up,
        on_error,
        subprotocols,
        origin,
        ssl_context,
        proxy,
        open_timeout,
        config,
    )


def _reconnect(
    url: str | Callable[[], str],
    headers: Headers | Callable[[], Headers],
    backoff: _Backoff,
    give_up: Callable[[Exception], bool],
    on_error: Callable[[Exception, float], object] | None,
    subprotocols: Sequence[str] | None,
    origin: str | None,
    ssl_context: ssl.SSLContext | None,
    proxy: bool | str | None,
    open_timeout: float | None,
    config: Config | None,
) -> Generator[WebSocket, None, None]:
    while True:
        error: Exception
        try:
            request = Request(
                subprotocols, headers() if callable(headers) else headers, origin, config
            )
            request.socket_class = _Reconnected
            socket = open_socket(
                url() if callable(url) else url, request, ssl_context, proxy, open_timeout
            )
        except (OSError, HandshakeError) as failure:
            if give_up(failure):
                raise
            error = failure
            backoff.fail(_retry_after(failure))
        else:
            backoff.begin()
            try:
                yield socket
            finally:
                socket.close()  # if there was no ``with``
            backoff.end()
            error = ConnectionClosed(
                socket.close_code or int(CloseCode.ABNORMAL), socket.close_reason or ""
            )
        delay = backoff.delay()
        if on_error is not None:
            on_error(error, delay)
        elif isinstance(error, ConnectionClosed):
            _logger.info("%s; connecting again in %.1f s", error, delay)
        else:
            _logger.warning("%s; trying again in %.1f s", error, delay)
        gevent.sleep(delay)


class _Backoff:
    """Computes the pause before the next attempt."""

    def __init__(self, least: float, most: float) -> None:
        self._least = least
        self._most = most
        self._failures = 0  # in a row
        self._began = 0.0
        self._asked_for = 0.0

    def fail(self, asked_for: float) -> None:
        """Counts a failed attempt. ``asked_for``: seconds of a pause that the server asks for."""
        self._asked_for = asked_for
        self._failures += 1

    def begin(self) -> None:
        """An attempt has succeeded."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The connection has ended. One that a server accepts and drops at once is a failure."""
        self._asked_for = 0.0
        if time.monotonic() - self._began > self._pause():
            self._failures = 0
        self._failures += 1

    def _pause(self) -> float:
        doublings = min(max(0, self._failures - 1), _MAX_DOUBLINGS)
        return min(self._most, self._least * 2.0**doublings)

    def delay(self) -> float:
        """Seconds to wait; if a server asks for a pause, that and a random bit more."""
        pause = self._pause() * random.uniform(0.5, 1.0)
        if self._asked_for:
            return max(self._asked_for + random.uniform(0.0, self._least), pause)
        return pause


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait (RFC 9110, section 10.2.3); 0 if it does not."""
    if not isinstance(error, HandshakeError) or not error.headers:
        return 0.0
    value = error.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return 0.0
        # A date of HTTP is in UTC, also in the form that does not say so (RFC 9110, section 5.6.7).
        seconds = date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time.time()
    return min(max(0.0, seconds), _MAX_RETRY_AFTER)
