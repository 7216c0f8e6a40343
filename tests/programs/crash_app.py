"""Sessions without a framework around them: one echoes, one fails."""

from greenws import Routes

app = Routes()


@app.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


@app.websocket("/crash")
def crash(request, socket):
    raise ValueError("of the handler")
