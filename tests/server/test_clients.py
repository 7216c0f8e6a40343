"""The register of a server's open sockets, for sessions without an HTTP handler."""

from __future__ import annotations

from greenws import WebSocketHandler, WebSocketSessionHandler

from ..support.limits import wait_until
from ..support.wire import TEXT, Peer


class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


def test_a_registered_client_has_gevent_websockets_attributes(serve):
    server = serve(WebSocketHandler(lambda request, protocols: Echo()))
    with Peer.open(server.address, "/here") as peer:
        (client,) = wait_until(lambda: list(server.clients.values()))
        assert client.address == peer.sock.getsockname()
        assert client.ws is client.ws
        client.ws.send("to everybody")
        assert peer.read_frame() == (True, TEXT, b"to everybody")
        assert client.ws.path == "/here"
        assert client.ws.handler.active_client is client
        assert client.ws.handler.server is server
        assert client.ws.current_app is not None
    wait_until(lambda: not server.clients)
