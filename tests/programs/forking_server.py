"""A server whose process forks while it serves.

Arguments: ``epoll`` or ``watchers``; ``early`` or ``late``, whether a hook that runs the hub in
each child is registered before or after those of greenws; ``direct``, ``wsgi``, or ``foreign`` for
a server of gevent's own; and for TLS the file of a certificate and its key.
"""

import multiprocessing
import os
import re
import subprocess
import sys
import threading

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402

POLLER, HOOK, KIND, *CERTIFICATE = sys.argv[1:]


def start_thread():
    """As OpenTelemetry and others do; here it also takes a while."""
    thread = threading.Thread(target=gevent.sleep, args=(0.02,))
    thread.start()
    thread.join()


if HOOK == "early":
    os.register_at_fork(after_in_child=start_thread)

from gevent.pywsgi import WSGIServer  # noqa: E402

from greenws import (  # noqa: E402
    Config,
    ConnectionClosed,
    Routes,
    UpgradeHandler,
    WebSocketServer,
)
from greenws.hub import polling  # noqa: E402

if HOOK == "late":
    os.register_at_fork(after_in_child=start_thread)

kind = {"epoll": polling.EpollPoller, "watchers": polling.WatcherPoller}[POLLER]
polling._pollers[gevent.get_hub()] = kind()

routes = Routes()
sockets = []


@routes.websocket("/echo")
def echo(request, socket):
    sockets.append(socket)
    for message in socket:
        socket.send(f"{os.getpid()} {message}")


@routes.websocket("/run")
def run(request, socket):
    for _ in socket:
        subprocess.run(["true"], check=True)
        socket.send("done")


@routes.websocket("/fork")
def fork(request, socket):
    """Has a child do what each message says."""
    for message in socket:
        if message == "accept":
            server.stop_accepting()  # so that it is clear who accepts
        process = multiprocessing.get_context("fork").Process(target=globals()[message])
        process.start()
        socket.send(str(process.pid))


def pid(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


routes.add(uri="/pid", handler=pid)


def polled():
    """The inodes of the sockets that this process polls."""
    found = set()
    for entry in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{entry}") as file:
                targets = re.findall(r"tfd:\s*(\d+).*?ino:([0-9a-f]+)", file.read())
        except OSError:
            continue
        found.update(int(inode, 16) for _, inode in targets)
    return found


def its_sockets():
    return {os.fstat(fd).st_ino for fd in map(int, os.listdir("/proc/self/fd")) if is_socket(fd)}


def is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def go_on():
    """A child that goes on using gevent, with a server of its own."""
    inherited = its_sockets()
    gevent.sleep(0.3)
    own = WebSocketServer(("127.0.0.1", 0), routes, log=None)
    own.start()
    gevent.sleep(0.1)
    print("polled:", len(polled() & inherited), flush=True)
    print(f"child: http://127.0.0.1:{own.server_port}/", flush=True)
    gevent.sleep(60)


def misuse():
    """A child that uses what it inherited."""
    outcomes = set()
    for socket in list(sockets):
        for call in (
            lambda socket=socket: socket.send("from the child"),
            lambda socket=socket: socket.send(b"x" * 1_000_000),
            lambda socket=socket: socket.send_ping(b"child"),
            lambda socket=socket: socket.ping(timeout=5),
            lambda socket=socket: socket.receive(timeout=5),
        ):
            try:
                call()
                outcomes.add("returned")
            except ConnectionClosed as error:
                outcomes.add(int(error.code))
        assert not socket.is_connected
        socket.close()
        assert socket.read_string_message().data is None
    print("misused:", outcomes, flush=True)
    server.stop()
    sockets.clear()
    gevent.sleep(0.05)


def accept():
    """A child that begins to accept."""
    print("accepting", flush=True)
    if KIND == "foreign":
        server.serve_forever()
    server.start_accepting()
    gevent.sleep(60)


class Wrapped:
    """Stands around the sessions, so that each goes through the HTTP handler."""

    def __call__(self, environ, start_response):
        return routes(environ, start_response)


CONFIG = Config(ping_interval=0.2, ping_timeout=60.0)


class Handler(UpgradeHandler):
    config = CONFIG


options = {}
if CERTIFICATE:
    options = {"certfile": CERTIFICATE[0], "keyfile": CERTIFICATE[0]}
if KIND == "foreign":
    server = WSGIServer(("127.0.0.1", 0), routes, handler_class=Handler, log=None, **options)
else:
    server = WebSocketServer(
        ("127.0.0.1", 0),
        routes if KIND == "direct" else Wrapped(),
        config=CONFIG,
        log=None,
        **options,
    )
server.start()
gevent.spawn(print, f"{os.getpid()} http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
