"""The register of a server's open sockets, for sessions without an HTTP handler."""

from __future__ import annotations

import weakref
from collections import OrderedDict

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


def test_the_register_may_be_any_mapping(serve, hub_errors):
    server = serve(WebSocketHandler(lambda request, protocols: Echo()))
    server.clients = OrderedDict()
    with Peer.open(server.address):
        wait_until(lambda: server.clients)
    wait_until(lambda: not server.clients)
    assert not hub_errors.take()


def test_a_registered_client_can_be_referred_to_weakly(serve):
    server = serve(WebSocketHandler(lambda request, protocols: Echo()))
    with Peer.open(server.address):
        references = wait_until(lambda: [weakref.ref(one) for one in server.clients.values()])
        assert references[0]() in server.clients.values()
    wait_until(lambda: not server.clients)
