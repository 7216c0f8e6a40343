"""gevent-websocket's register of the open sockets of a server, ``server.clients``."""

from __future__ import annotations

from typing import Any

from ..protocol.handshake import Offer
from ..upgrade import Upgrade
from ..websocket import WebSocket
from .gevent_websocket import GeventWebSocket
from .host import Host

__all__ = ["DirectClient"]


class DirectClient:
    """The entry of a session that has no HTTP handler.

    It has the attributes of gevent-websocket's ``Client``, and those that ``GeventWebSocket`` reads
    from a handler.
    """

    __slots__ = ("_socket", "_ws", "address", "server")

    def __init__(self, server: Host, address: Any, socket: WebSocket) -> None:
        self.server = server
        self.address = address
        self._socket = socket
        self._ws: GeventWebSocket | None = None

    @property
    def ws(self) -> GeventWebSocket:
        """gevent-websocket's face of the socket, made when it is first read."""
        if self._ws is None:
            upgrade = Upgrade(Offer("", []), self.server.config)
            upgrade.socket = self._socket  # it was accepted before
            assert self._socket.request is not None
            self._ws = GeventWebSocket(upgrade, self._socket.request.environ, self)
        return self._ws

    @property
    def application(self) -> Any:
        return self.server.application

    @property
    def client_address(self) -> Any:
        return self.address

    @property
    def active_client(self) -> DirectClient:
        return self
