"""The types of options, for type checkers. No program imports this module at run time.

With ``**options: Unpack[SessionOptions]``, mypy and pyright find a misspelt option.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import ssl

    from gevent.pool import Pool

__all__ = ["ConfigOptions", "ServerOptions", "SessionOptions"]


class SessionOptions(TypedDict, total=False):
    """The options of :class:`greenws.Config` that concern a session."""

    max_message_size: int | None
    max_fragments: int | None
    close_timeout: float | None
    write_high_water: int | None
    write_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    max_message_rate: float | None
    max_lifetime: float | None
    allowed_origins: str | Sequence[str] | None
    allowed_hosts: str | Sequence[str] | None
    access_log: str | None
    deflate: bool
    deflate_threshold: int
    deflate_level: int
    deflate_memory_level: int
    deflate_window_bits: int
    deflate_peer_window_bits: int
    deflate_takeover: bool
    deflate_peer_takeover: bool


class ConfigOptions(SessionOptions, total=False):
    """All options of :class:`greenws.Config`."""

    handshake_timeout: float | None
    keep_alive_timeout: float | None
    body_timeout: float | None
    min_body_rate: int | None
    max_request_line: int | None
    max_headers: int | None
    max_header_size: int | None
    max_connections: int | None
    max_connections_per_address: int | None
    shutdown_grace: float | None
    shutdown_drain: float


class ServerOptions(TypedDict, total=False):
    """The options of ``gevent.pywsgi.WSGIServer`` and gevent-websocket's server, which
    :class:`greenws.WebSocketServer` accepts besides its own."""

    backlog: int | None
    spawn: int | str | Pool | Callable[..., object] | None
    log: Any
    error_log: Any
    handler_class: type | None
    environ: MutableMapping[str, Any] | None
    debug: bool
    pre_start_hook: Callable[[Any], object] | None
    certfile: str | None
    keyfile: str | None
    ssl_context: ssl.SSLContext | None
    ca_certs: str | None
    cert_reqs: int
    ciphers: str | None
    ssl_version: int
    server_side: bool
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool
