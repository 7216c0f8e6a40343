"""A WebSocketHandler under servers that hand over no socket: ``waitress`` or ``wsgiref``."""

import logging
import sys

from greenws import WebSocketHandler, WebSocketSessionHandler


class Echo(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/hello":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]
    return handler(environ, start_response)


handler = WebSocketHandler(lambda request, protocols: Echo())

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if sys.argv[1] == "waitress":
        import waitress

        server = waitress.create_server(application, host="127.0.0.1", port=0)
        port = server.effective_port
        run = server.run
    else:
        from wsgiref.simple_server import make_server

        server = make_server("127.0.0.1", 0, application)
        port = server.server_port
        run = server.serve_forever
    print(f"http://127.0.0.1:{port}/", flush=True)
    run()
