"""The greenws demo: an echo service, a chat room, and the pages that speak to them; and /server, a
live picture of the process that serves them.

python run_server.py                          http://127.0.0.1:8181/
python run_server.py --host 0.0.0.0 --port 0  any address, any free port
python run_server.py --certfile cert.pem --keyfile key.pem    https and wss
python run_server.py --workers 4 --redis redis://localhost    many processes, with the same rooms
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()  # before all other imports: redis-py waits for its sockets

import argparse
import contextlib
import dataclasses
import errno
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent import ssl
from werkzeug import Request, Response

from greenws import (
    Room,
    Rooms,
    Routes,
    StaticFiles,
    WebSocket,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    policies,
)
from greenws.brokers import Broker, BrokerUnavailable
from greenws.brokers.memory import MemoryBroker
from greenws.rooms import json_id
from greenws.stats import of_this_process, total

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

WEBROOT = Path(__file__).resolve().parent / "webroot"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
MAX_LOGGED = 200  # characters of a payload in the log
MAX_NAME = 32
MAX_TEXT = 2000
MAX_HISTORY = 50
MAX_LAG = 200  # messages that wait for a member who does not read
MINUTE = 60  # snapshots, one a second, that who comes to watch is sent at once
MAX_LISTED = 20  # rooms and slow members in a snapshot
MAX_LISTED_NAME = 80  # characters of a room's name in it
RATED = ("messages_in", "messages_out", "bytes_in", "bytes_out")

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


class Chat:
    """Rooms by name. Each text message in either direction is one JSON object.

    A client sends {"type": "join", "name"}, then any number of {"type": "message", "text"}, and
    leaves by closing. It gets "welcome" (the name it was given, the members, the history, the "id"
    up to which that is), then "joined", "left" and "message" as they happen, each with an "id", and
    "error" for what was refused. One that comes back adds "since", the last id it saw, to "join":
    it gets what it missed before its welcome, and "gap" if that is not all known any more.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._last_time = 0

    def attend(self, socket: WebSocket, room: Room) -> None:
        """Serve one client until its connection ends."""
        with contextlib.ExitStack() as membership:
            name = ""
            for message in socket:
                try:
                    event = self._parse(message)
                    if event.get("type") == "join" and not name:
                        name = self._join(membership, socket, room, event)
                    elif event.get("type") == "message" and name:
                        self._say(room, name, event.get("text"))
                    else:
                        raise BadInput(
                            'Join once, with a "name", and then send messages with a "text".'
                        )
                except BadInput as error:
                    socket.send(json.dumps({"type": "error", "message": str(error)}))

    def _parse(self, message: str | bytes) -> dict[str, Any]:
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise BadInput("A message must be a JSON object.")
        return event

    def _join(
        self,
        membership: contextlib.ExitStack,
        socket: WebSocket,
        room: Room,
        event: dict[str, Any],
    ) -> str:
        wanted, since = event.get("name"), event.get("since")
        name = " ".join(wanted.split()) if isinstance(wanted, str) else ""
        name = "".join(character for character in name if character.isprintable()).strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise BadInput(f"A name needs 1 to {MAX_NAME} visible characters.")
        since = since if isinstance(since, str) else None
        name = _free_name(name, room)
        member = membership.enter_context(
            room.join(
                socket,
                since=since,
                gap=json.dumps({"type": "gap"}),
                presence=self._tell_presence,
                name=name,
            )
        )
        history = [] if since else [json.loads(message) for message in room.history(MAX_HISTORY)]
        welcome = {
            "type": "welcome",
            "name": name,
            "members": [str(each.info.get("name")) for each in room.members],
            "history": history,
            "id": member.position,
        }
        socket.send(json.dumps(welcome))
        socket.send(self._tell_presence("join", member.info))
        return name

    def _tell_presence(self, kind: str, info: dict[str, Any]) -> str:
        event = {"type": "joined" if kind == "join" else "left", "name": info.get("name")}
        return json.dumps({**event, "time": self._now()})

    def _say(self, room: Room, name: str, text: object) -> None:
        text = text.strip() if isinstance(text, str) else ""
        if not 1 <= len(text) <= MAX_TEXT:
            raise BadInput(f"A message needs a text of 1 to {MAX_TEXT} characters.")
        said = {"type": "message", "name": name, "text": text, "time": self._now()}
        try:
            room.send(json.dumps(said))
        except BrokerUnavailable:
            raise BadInput("The chat is cut off from its other servers; try again.") from None

    def _now(self) -> int:
        """Milliseconds since 1970, never the same twice."""
        self._last_time = max(self._last_time + 1, int(time.time() * 1000))
        return self._last_time


def _free_name(wanted: str, room: Room) -> str:
    """The name itself, or with a number behind it when somebody here has it."""
    taken = {str(member.info.get("name")).casefold() for member in room.members}
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        suffix = f" ({number})"
        name = wanted[: MAX_NAME - len(suffix)] + suffix
    return name


class Monitor:
    """Tells whoever watches, once a second, what this process does; with ``redis``, also those
    who watch at other processes, and them what those do.

    A snapshot is a JSON object:

    - "time": milliseconds since 1970, which never go back
    - "process": its "id", its "pid", when it "started" (likewise), its "memory" (bytes, or null),
      and whether it is "one_of_several" workers of which the others tell nothing here
    - "server": connections, messages, bytes, refusals and closes (``server.stats.as_dict()``)
    - "rates": of the messages and bytes among them, each second; null in the first snapshot
    - "rooms": what the rooms count, :class:`greenws.rooms.Stats`
    - "largest_rooms": [{"name", "members"}] of those with members here, the others included
    - "slow_members": [{"name", "room", "waiting"}], the messages that wait for those who lag
    """

    def __init__(self, rooms: Rooms, redis: str | None, one_of_several: bool) -> None:
        self._rooms = rooms
        self._id = secrets.token_hex(6)
        self._one_of_several = one_of_several and not redis
        self._started = int(time.time() * 1000)
        self._ahead = self._started - time.monotonic() * 1000  # of the clock that never goes back
        broker: Broker = MemoryBroker(history=MINUTE, max_age=MINUTE)
        if redis:
            from greenws.brokers.redis import RedisBroker

            broker = RedisBroker(redis, prefix="greenws:demo-server:", max_age=MINUTE)
        # One that watches over a slow line needs none but the newest snapshot of each process.
        newest = policies.coalesce(lambda snapshot: json.loads(snapshot)["process"]["id"])
        self._watchers = Rooms(broker, policy=newest)["all"]
        self._ticker: gevent.Greenlet[[], None] | None = None
        self._is_shared = broker.is_shared
        if self._is_shared:  # others may watch it
            self._ticker = gevent.spawn(self._tick)

    def attend(self, socket: WebSocket) -> None:
        """Serve one who watches until its connection ends."""
        with self._watchers.join(socket, since="0-0"):  # the last minute first, then go on live
            if not self._ticker:
                self._ticker = gevent.spawn(self._tick)
            for _ in socket:
                pass  # there is nothing to ask

    def _tick(self) -> None:
        """Runs while somebody may watch."""
        last: dict[str, Any] = {}
        last_time = 0.0
        while True:
            if len(self._watchers):
                figures, now = total(of_this_process()), time.monotonic()
                rates = {
                    name: (figures[name] - last[name]) / (now - last_time) for name in RATED if last
                }
                with contextlib.suppress(BrokerUnavailable):
                    self._watchers.send(json.dumps(self._snapshot(figures, rates or None)))
                last, last_time = figures, now
            elif self._is_shared:
                last = {}
            else:
                return
            gevent.sleep(1)

    def _snapshot(self, figures: dict[str, Any], rates: dict[str, float] | None) -> dict[str, Any]:
        rooms: list[dict[str, Any]] = []
        slow: list[dict[str, Any]] = []
        for room in self._rooms:
            name = room.name[:MAX_LISTED_NAME]
            rooms.append({"name": name, "members": len(room)})
            for member in room.lagging:
                who = member.info.get("name")
                slow.append({"name": who, "room": name, "waiting": member.waiting})
        rooms.sort(key=lambda each: each["members"], reverse=True)
        slow.sort(key=lambda each: each["waiting"], reverse=True)
        return {
            "time": int(self._ahead + time.monotonic() * 1000),
            "process": {
                "id": self._id,
                "pid": os.getpid(),
                "started": self._started,
                "memory": _resident_memory(),
                "one_of_several": self._one_of_several,
            },
            "server": figures,
            "rates": rates,
            "rooms": dataclasses.asdict(self._rooms.stats),
            "largest_rooms": rooms[:MAX_LISTED],
            "slow_members": slow[:MAX_LISTED],
        }


def _resident_memory() -> int | None:
    """Bytes of this process that are in RAM, where /proc tells (Linux)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def make_routes(redis: str | None = None, one_of_several: bool = False) -> Routes:
    """The demo as a WSGI application; ``redis``: the URL of what carries its rooms to others;
    ``one_of_several``: other workers serve the same address."""
    routes = Routes()
    rooms = Rooms(redis, policy=policies.close(limit=MAX_LAG), stamp=json_id)
    chat = Chat(rooms)
    monitor = Monitor(rooms, redis, one_of_several)
    files = StaticFiles(WEBROOT)

    @routes.websocket("/chat", protocols=["chat"])
    def lobby(request: Request, socket: WebSocket) -> None:
        chat.attend(socket, rooms["lobby"])

    @routes.websocket("/chat/<room>", protocols=["chat"])
    def named(request: Request, socket: WebSocket, room: str) -> None:
        chat.attend(socket, rooms[room])

    @routes.websocket("/server/live", protocols=["live"])
    def live(request: Request, socket: WebSocket) -> None:
        monitor.attend(socket)

    def server_page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return files({**environ, "PATH_INFO": "/server.html"}, start_response)

    try:
        from greenws.integrations.prometheus import Metrics

        routes.add(method="GET", uri="/metrics", handler=Metrics(rooms))
    except ImportError as error:
        routes.add(method="GET", uri="/metrics", handler=Response(f"{error}\n", 501))
    routes.add(method="GET", uri="/echo", handler=WebSocketHandler(produce_echo))
    routes.add(method="GET", uri="/server", handler=server_page)
    routes.add(method="GET", uri="*", handler=files)
    return routes


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def worker_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 to 1000)")
    return int(text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the greenws demo: echo and chat.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=8181, help="port, 0 for any free one (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=worker_count, help="serve with that many processes, kept by gunicorn"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="share the rooms through a Redis, such as redis://localhost"
    )
    parser.add_argument("--certfile", help="TLS certificate chain (PEM), for https and wss")
    parser.add_argument("--keyfile", help="the certificate's private key (PEM)")
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="what to log (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if bool(options.certfile) != bool(options.keyfile):
        parser.error("--certfile and --keyfile go together: give both, or neither")
    if options.redis is not None:
        try:
            Rooms(options.redis).close()
        except (ImportError, ValueError) as error:
            parser.error(f"cannot use --redis {options.redis!r}: {error}")
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


def cannot_listen(options: argparse.Namespace, error: OSError) -> int:
    """Says so; the exit code."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
    print(f"cannot listen on {host}:{options.port}: {reason}", file=sys.stderr)
    return 1


def serve_with_workers(options: argparse.Namespace) -> int:
    """gunicorn keeps the processes: SIGHUP reloads them, SIGTTIN and SIGTTOU make them more or
    fewer, SIGTERM ends them gracefully."""
    try:
        from gunicorn.app.base import BaseApplication

        from greenws.gunicorn import Worker
    except ImportError as error:
        hint = "pip install 'gunicorn[gevent]' (or 'greenws[gunicorn]')"
        print(f"--workers needs gunicorn: {error}; {hint}", file=sys.stderr)
        return 1
    try:  # gunicorn tries for 5 s
        with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except OSError as error:
        return cannot_listen(options, error)
    if not options.redis and options.workers > 1:
        logger.warning("each worker has rooms of its own: give --redis too, and they share them")
    scheme = "https" if options.tls else "http"

    class Demo(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            host = f"[{options.host}]" if ":" in options.host else options.host
            self.cfg.set("bind", f"{host}:{options.port}")
            self.cfg.set("workers", options.workers)
            self.cfg.set("worker_class", Worker)
            self.cfg.set("worker_connections", 10_000)
            self.cfg.set("certfile", options.certfile)
            self.cfg.set("keyfile", options.keyfile)
            self.cfg.set("loglevel", options.log_level)
            self.cfg.set("proc_name", "greenws")
            self.cfg.set("when_ready", self.announce)
            self.cfg.set("child_exit", self.forget)

        def announce(self, arbiter: Any) -> None:
            host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"greenws demo on {scheme}://{host}:{port}/  (Ctrl-C stops it)", flush=True)

        def forget(self, arbiter: Any, worker: Any) -> None:
            with contextlib.suppress(ImportError):
                from prometheus_client import multiprocess

                multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]

        def load(self) -> Routes:
            return make_routes(options.redis, one_of_several=options.workers > 1)

    master = os.getpid()
    folder = tempfile.mkdtemp(prefix="greenws-metrics-")
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
    try:
        Demo().run()
    finally:
        if os.getpid() == master:  # the workers are forks, and come by here as well
            shutil.rmtree(folder)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if options.workers:
        return serve_with_workers(options)
    tls = {"ssl_context": options.tls} if options.tls else {}
    server = WebSocketServer((options.host, options.port), make_routes(options.redis), **tls)
    try:
        server.start()
    except OSError as error:
        return cannot_listen(options, error)
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "https" if options.tls else "http"
    line = f"greenws demo on {scheme}://{host}:{server.server_port}/  (Ctrl-C stops it)"
    gevent.spawn(print, line, flush=True)  # runs when serve_forever() waits, and handles signals
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
