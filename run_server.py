"""The greenws demo: an echo service, chat rooms, the web pages that use them, and a page with live
figures of the server.

python run_server.py                          http://127.0.0.1:8181/
python run_server.py --host 0.0.0.0 --port 0  every address of this machine, any free port
python run_server.py --certfile cert.pem --keyfile key.pem    https and wss; SIGHUP reads them again
python run_server.py --workers 4 --redis redis://localhost    several processes that share the rooms
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()  # before the other imports: redis-py must wait without blocking the hub

import logging
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from werkzeug import Request, Response

from demo.chat import Chat
from demo.command_line import listen_error, parse_options, start_line
from demo.monitor import Monitor
from demo.page import ChatPage
from demo.workers import serve_with_workers
from greenws import (
    Rooms,
    Routes,
    StaticFiles,
    WebSocket,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    policies,
)
from greenws.rooms import json_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

WEBROOT = Path(__file__).resolve().parent / "webroot"
MAX_LOGGED = 200  # characters of a message in the log
MAX_LAG = 200  # messages queued for a chat member that reads too slowly

logger = logging.getLogger("greenws.demo")


class EchoHandler(WebSocketSessionHandler):
    """Sends back what it reads, fragment by fragment."""

    socket_protocol = "echo"

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        while True:
            text, opcode, final = socket.read_string_message()
            if text is None:  # timed out, or the peer is gone
                socket.close()
                return
            shown = f"{text[:MAX_LOGGED]!r}" + ("..." if len(text) > MAX_LOGGED else "")
            logger.info("Read msg: %s op: %s fin: %s", shown, opcode.name, final)
            socket.send_string_message(text, final=final)


def produce_echo(request: Request, protocols: list[str]) -> WebSocketSessionHandler | None:
    return EchoHandler() if "echo" in protocols else None


def make_routes(redis: str | None = None, one_of_several: bool = False) -> Routes:
    """The demo as a WSGI application.

    ``redis``: URL of the Redis through which processes share the rooms.
    ``one_of_several``: other workers serve the same address.
    """
    routes = Routes()
    rooms = Rooms(redis, policy=policies.close(limit=MAX_LAG), stamp=json_id)
    chat = Chat()
    monitor = Monitor(rooms, redis, one_of_several)
    files = StaticFiles(WEBROOT, not_found="404.html")

    routes.add(method="GET", uri="/echo", handler=WebSocketHandler(produce_echo))

    @routes.websocket("/chat", protocols=["chat"])
    def chat_in_lobby(request: Request, socket: WebSocket) -> None:
        chat.serve(socket, rooms["lobby"])

    @routes.websocket("/chat/<room>", protocols=["chat"])
    def chat_in_room(request: Request, socket: WebSocket, room: str) -> None:
        chat.serve(socket, rooms[room])

    @routes.websocket("/server/live", protocols=["live"])
    def live(request: Request, socket: WebSocket) -> None:
        monitor.serve(socket)

    def server_page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return files({**environ, "PATH_INFO": "/server.html"}, start_response)

    try:
        from greenws.integrations.prometheus import Metrics

        routes.add(method="GET", uri="/metrics", handler=Metrics(rooms))
    except ImportError as error:  # prometheus_client is optional
        routes.add(method="GET", uri="/metrics", handler=Response(f"{error}\n", 501))
    routes.add(method="GET", uri="/server", handler=server_page)
    routes.add(method="GET", uri="/", handler=ChatPage(WEBROOT / "index.html", rooms))
    routes.add(method="GET", uri="*", handler=files)
    return routes


def reload_certificates(server: WebSocketServer) -> None:
    try:
        server.reload_certificates()
    except OSError as error:
        logger.error("the certificate was not reloaded: %s", error)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if options.workers:
        return serve_with_workers(options, make_routes)
    tls = {"certfile": options.certfile, "keyfile": options.keyfile} if options.certfile else {}
    server = WebSocketServer((options.host, options.port), make_routes(options.redis), **tls)
    try:
        server.start()
    except OSError as error:
        print(listen_error(options, error), file=sys.stderr)
        return 1
    line = start_line(options, options.host, server.server_port)
    if tls and hasattr(signal, "SIGHUP"):
        gevent.signal_handler(signal.SIGHUP, reload_certificates, server)
    # The greenlet prints once serve_forever() waits, when signals are handled already.
    gevent.spawn(print, line, flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
