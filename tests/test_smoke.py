from wire import TEXT, Peer, close_frame, frame

from greenws import Routes


def test_echo(serve):
    routes = Routes()

    @routes.websocket("/echo")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    server = serve(routes)
    with Peer.open(server.address, "/echo") as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        peer.send(close_frame())
        assert peer.read_close() == (1000, b"")
