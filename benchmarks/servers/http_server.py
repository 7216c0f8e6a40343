"""A WSGI server for the cases of plain HTTP: ``http_server.py pywsgi|waitress|cheroot|granian``."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

kind = sys.argv.pop(1)
if kind == "pywsgi":
    from gevent import monkey

    monkey.patch_all()

from common import HOST, announce, parse_options  # noqa: E402
from http_app import make_http_app  # noqa: E402

options = parse_options()
app = make_http_app()


def listener() -> socket.socket:
    sock = socket.create_server((HOST, options.port), backlog=4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which accepted sockets inherit
    return sock


def announce_socket(sock: socket.socket) -> None:
    announce(sock.getsockname()[1], kind if kind != "pywsgi" else "gevent", "flask")


if kind == "pywsgi":
    from gevent.pywsgi import WSGIServer

    sock = listener()
    sock.setblocking(False)
    announce_socket(sock)
    WSGIServer(sock, app, log=None).serve_forever()
elif kind == "waitress":
    import waitress

    sock = listener()
    announce_socket(sock)
    waitress.serve(app, sockets=[sock])
elif kind == "cheroot":
    from cheroot import wsgi

    server = wsgi.Server((HOST, options.port), app)
    server.prepare()
    announce_socket(server.socket)
    server.serve()
elif kind == "granian":
    from granian.constants import Interfaces
    from granian.server import Server

    with listener() as sock:
        port = sock.getsockname()[1]
    server = Server(
        "http_app:make_http_app",
        factory=True,
        address=HOST,
        port=port,
        interface=Interfaces.WSGI,
        log_enabled=False,
    )

    def announce_when_listening() -> None:
        while True:  # run.py ends it if it does not
            with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
                announce(port, "granian", "flask")
                return
            time.sleep(0.01)

    threading.Thread(target=announce_when_listening, daemon=True).start()
    server.serve()
