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


@app.websocket("/raw/<rest>")
def raw(request, socket, rest):
    socket.send(f"{request.environ['RAW_URI']} {rest}")


@Request.application
def page(request):
    return Response(facts(request, request.remote_addr))


app.add(uri="/", handler=page)
