"""The environ of a request, and the client's address in it."""

from __future__ import annotations

from typing import Any

from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead
from ..protocol.handshake import is_upgrade
from ..protocol.origin import check_host
from ..refusals import log_refusal
from .host import Host

__all__ = ["make_environ", "remote_address"]


def make_environ(host: Host, address: Any, head: RequestHead) -> dict[str, Any]:
    """The environ of a request, without ``wsgi.input``.

    Raises:
        RequestError: the request names a host that is not one of ``allowed_hosts``, or
            ``host._adapt`` refuses it.
    """
    environ = host.get_environ()
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"] = str(address[0])
        environ["REMOTE_PORT"] = str(address[1])
    head.add_to(environ)
    environ["wsgi.input_terminated"] = True
    if host._adapt is not None:
        host._adapt(environ, address, head)
    if host.proxy_fix is not None:
        host.proxy_fix(environ, None)
    if host.config.allowed_hosts is not None:
        try:
            check_host(environ, host.config.allowed_hosts)
        except HandshakeError as error:
            is_handshake = is_upgrade(environ)
            if is_handshake:
                if host.stats is not None:
                    host.stats.refused[error.reason] += 1
                log_refusal(environ, error)
            raise RequestError(str(error), error.status, is_handshake) from None
    return environ


def remote_address(environ: dict[str, Any], peer: Any) -> Any:
    """The client's address; port 0 where it comes from the headers of trusted proxies."""
    if "werkzeug.proxy_fix.orig" in environ:
        host = environ.get("REMOTE_ADDR")
        if host != environ["werkzeug.proxy_fix.orig"].get("REMOTE_ADDR"):
            return (host, 0)
    return peer
