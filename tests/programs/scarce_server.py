"""An echo server that may take 200 MB more memory than it has when it starts."""

import re
import resource

import gevent

from greenws import Config, Routes, WebSocketServer

routes = Routes()


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


server = WebSocketServer(
    ("127.0.0.1", 0),
    routes,
    config=Config(
        max_message_size=1 << 26, max_fragments=None, max_connections=None, handshake_timeout=300
    ),
    log=None,
    backlog=4096,
)
server.start()
with open("/proc/self/status", encoding="ascii") as file:
    size = int(re.search(r"VmSize:\s+(\d+)", file.read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), -1))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
gevent.spawn(print, f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
