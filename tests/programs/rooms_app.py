"""A room for each path, carried by the Redis of ``REDIS_URL``."""

import json
import os

from greenws import Rooms, Routes
from greenws.rooms import json_id

rooms = Rooms(os.environ.get("REDIS_URL"), stamp=json_id)
app = Routes()


@app.websocket("/<room>")
def chat(request, socket, room):
    room = rooms[room]
    with room.join(socket, since=request.args.get("since"), gap='{"gap": true}') as member:
        socket.send(json.dumps({"id": member.position, "pid": os.getpid()}))
        for message in socket:
            room.send(message)


@app.websocket("/members/<room>")
def members(request, socket, room):
    socket.send(json.dumps([member.id for member in rooms[room].members]))
