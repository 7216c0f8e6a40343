"""An echo with permessage-deflate for the fuzzing client. Prints its form and its port."""

import gevent

import greenws
from greenws import Config, Routes
from greenws.protocol import connection


def echo(request, socket):
    for message in socket:
        socket.send(message)


routes = Routes()
routes.websocket("/")(echo)
# The largest case sends 16 MiB in one message, or in 4 million fragments.
config = Config(max_message_size=16 << 20, max_fragments=None, write_high_water=32 << 20)
server = greenws.WebSocketServer(("127.0.0.1", 0), routes, log=None, config=config)
server.start()
form = "pure" if connection.__file__.endswith(".py") else "compiled"
print(f"{form} {server.server_port}", flush=True)
gevent.wait()
