"""An application of wsgi.websocket, for gunicorn with gevent-websocket's own worker class."""

import greenws.integrations.gevent_websocket

greenws.integrations.gevent_websocket.install()


def app(environ, start_response):
    ws = environ["wsgi.websocket"]
    name = type(ws.handler).__name__
    while (message := ws.receive()) is not None:
        ws.send(f"{name}: {message}")
    return []
