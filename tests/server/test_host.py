"""Any pywsgi server offers its handler what a WebSocketServer offers."""

from __future__ import annotations

from gevent import pywsgi

from greenws import Config, UpgradeHandler, WebSocketHandler, WebSocketSessionHandler
from greenws.server.host import ForeignHost, host_of

from ..support.wire import Peer, close_frame


def plain(environ, start_response):
    start_response("200 OK", [])
    return [b"plain"]


def test_a_websocket_server_is_a_host_itself(serve):
    server = serve(plain)
    assert host_of(server, Config()) is server


def test_another_server_has_the_handlers_config_and_no_limits(serve):
    server = serve(plain, cls=pywsgi.WSGIServer, handler_class=UpgradeHandler)
    config = Config(max_message_size=5)
    host = host_of(server, config)
    assert isinstance(host, ForeignHost)
    assert (host.config, host.application, host.stats) == (config, plain, None)
    assert host.get_environ()["SERVER_PORT"] == str(server.server_port)
    assert not host.is_stopping
    assert [host.admission.enter("a") for _ in range(20_000)] == [""] * 20_000


def test_the_clients_of_another_server_are_registered_there(serve):
    seen = []

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            seen.append(list(server.clients))
            socket.receive()

    app = WebSocketHandler(lambda request, protocols: Session())
    server = serve(app, cls=pywsgi.WSGIServer, handler_class=UpgradeHandler)
    with Peer.open(server.address) as peer:
        address = peer.sock.getsockname()
        peer.send(close_frame())
        peer.read_close()
    assert seen == [[address]]
    assert host_of(server, Config()).clients is server.clients
