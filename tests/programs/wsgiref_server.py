"""A WebSocketHandler on wsgiref, which hands over no socket."""

from wsgiref.simple_server import make_server

from echo_app import app

server = make_server("127.0.0.1", 0, app)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
