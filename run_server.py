"""The greenws demo: an echo service, a chat room, and the pages that speak to them.

python run_server.py                          http://127.0.0.1:8181/
python run_server.py --host 0.0.0.0 --port 0  any address, any free port
python run_server.py --certfile cert.pem --keyfile key.pem    https and wss
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent import ssl
from werkzeug import Request

from greenws import (
    ConnectionClosed,
    Routes,
    StaticFiles,
    WebSocket,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
)

WEBROOT = Path(__file__).resolve().parent / "webroot"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
MAX_LOGGED = 200  # characters of a payload in the log
MAX_NAME = 32
MAX_TEXT = 2000
MAX_HISTORY = 50
SLOW_MEMBER_SECONDS = 1.0  # how long a broadcast waits for a member who does not read

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


class BadInput(ValueError):
    """Input that the room refuses; the message is for the person who sent it."""


class ChatRoom:
    """One room, in memory. Each text message in either direction is one JSON object.

    A client sends {"type": "join", "name"}, then any number of {"type": "message", "text"}, and
    leaves by closing. It gets "welcome" (the name it was given, the members, the history), then
    "joined", "left" and "message" as they happen, and "error" for what was refused.
    """

    def __init__(self) -> None:
        self._members: dict[WebSocket, str] = {}
        self._history: deque[dict[str, Any]] = deque(maxlen=MAX_HISTORY)
        self._last_time = 0

    def attend(self, socket: WebSocket) -> None:
        """Serve one client until its connection ends."""
        try:
            for message in socket:
                try:
                    self._handle(socket, message)
                except BadInput as error:
                    socket.send(json.dumps({"type": "error", "message": str(error)}))
        finally:
            name = self._members.pop(socket, None)
            if name is not None:
                self._broadcast({"type": "left", "name": name, "time": self._now()})

    def _handle(self, socket: WebSocket, message: str | bytes) -> None:
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise BadInput("A message must be a JSON object.")
        name = self._members.get(socket)
        if event.get("type") == "join" and name is None:
            self._join(socket, event.get("name"))
        elif event.get("type") == "message" and name is not None:
            text = event.get("text")
            text = text.strip() if isinstance(text, str) else ""
            if not 1 <= len(text) <= MAX_TEXT:
                raise BadInput(f"A message needs a text of 1 to {MAX_TEXT} characters.")
            said = {"type": "message", "name": name, "text": text, "time": self._now()}
            self._history.append(said)
            self._broadcast(said)
        else:
            raise BadInput('Join once, with a "name", and then send messages with a "text".')

    def _join(self, socket: WebSocket, wanted: object) -> None:
        name = " ".join(wanted.split()) if isinstance(wanted, str) else ""
        name = "".join(character for character in name if character.isprintable()).strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise BadInput(f"A name needs 1 to {MAX_NAME} visible characters.")
        name = self._members[socket] = self._free_name(name)
        members, history = list(self._members.values()), list(self._history)
        welcome = {"type": "welcome", "name": name, "members": members, "history": history}
        socket.send(json.dumps(welcome))
        self._broadcast({"type": "joined", "name": name, "time": self._now()})

    def _free_name(self, wanted: str) -> str:
        """The name itself, or with a number behind it when somebody here has it."""
        taken = {name.casefold() for name in self._members.values()}
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            suffix = f" ({number})"
            name = wanted[: MAX_NAME - len(suffix)] + suffix
        return name

    def _broadcast(self, event: dict[str, Any]) -> None:
        """Send to all members. One who is gone is skipped, and one who does not read is closed."""
        payload = json.dumps(event)
        for member in list(self._members):
            try:
                with gevent.Timeout(SLOW_MEMBER_SECONDS):
                    member.send(payload)
            except ConnectionClosed:
                pass  # its own greenlet is about to leave
            except gevent.Timeout:
                gevent.spawn(member.close, 1008, "You read too slowly.")

    def _now(self) -> int:
        """Milliseconds since 1970, never the same twice: pages tell by it what they have shown."""
        self._last_time = max(self._last_time + 1, int(time.time() * 1000))
        return self._last_time


def make_routes() -> Routes:
    routes = Routes()
    room = ChatRoom()

    @routes.websocket("/chat", protocols=["chat"])
    def chat(request: Request, socket: WebSocket) -> None:
        room.attend(socket)

    routes.add(method="GET", uri="/echo", handler=WebSocketHandler(produce_echo))
    routes.add(method="GET", uri="*", handler=StaticFiles(WEBROOT))
    return routes


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the greenws demo: echo and chat.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=8181, help="port, 0 for any free one (%(default)s)"
    )
    parser.add_argument("--certfile", help="TLS certificate chain (PEM), for https and wss")
    parser.add_argument("--keyfile", help="the certificate's private key (PEM)")
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="what to log (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if bool(options.certfile) != bool(options.keyfile):
        parser.error("--certfile and --keyfile go together: give both, or neither")
    options.tls = None
    if options.certfile:
        options.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            for path in (options.certfile, options.keyfile):
                open(path, "rb").close()  # unlike load_cert_chain's, its error names the file
            options.tls.load_cert_chain(options.certfile, options.keyfile)
        except OSError as error:
            parser.error(f"cannot use {options.certfile} with {options.keyfile}: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    tls = {"ssl_context": options.tls} if options.tls else {}
    server = WebSocketServer((options.host, options.port), make_routes(), **tls)
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        server.start()
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        print(f"cannot listen on {host}:{options.port}: {reason}", file=sys.stderr)
        return 1
    scheme = "https" if options.tls else "http"
    line = f"greenws demo on {scheme}://{host}:{server.server_port}/  (Ctrl-C stops it)"
    gevent.spawn(print, line, flush=True)  # runs when serve_forever() waits, and handles signals
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
