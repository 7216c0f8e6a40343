"""A WebSocketHandler on waitress, which hands over no socket."""

import waitress
from echo_app import app

server = waitress.create_server(app, host="127.0.0.1", port=0, threads=1)
print(f"http://127.0.0.1:{server.effective_port}", flush=True)
server.run()
