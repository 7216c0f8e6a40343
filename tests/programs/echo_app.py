"""An echo as a WSGI application."""

from greenws import WebSocketHandler, WebSocketSessionHandler


class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


app = WebSocketHandler(lambda request, protocols: Echo())
