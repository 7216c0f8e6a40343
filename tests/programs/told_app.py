"""Tells a client what the application knows of it: over a WebSocket, and over HTTP."""

import os

from werkzeug import Request, Response

from greenws import Routes

app = Routes()


def facts(request, address):
    return f"{os.getpid()} {request.scheme} {address} {request.environ.get('PROXY_ADDR')}"


@app.websocket("/ws")
def session(request, socket):
    socket.send(facts(request, socket.remote_address[0]))
    for message in socket:
        socket.send(message)


@Request.application
def page(request):
    return Response(facts(request, request.remote_addr))


app.add(uri="/", handler=page)
