"""A chat of each worker, and /metrics; what the README shows."""

import os

from greenws import Rooms, Routes
from greenws.integrations.prometheus import Metrics

rooms = Rooms()
app = Routes()
app.add(method="GET", uri="/metrics", handler=Metrics(rooms))


@app.websocket("/chat")
def chat(request, socket):
    with rooms["chat"].join(socket):
        socket.send(str(os.getpid()))
        for message in socket:
            rooms["chat"].send(message)
