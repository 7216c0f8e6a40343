"""``python exiting_server.py KIND``: its main thread exits with 3 at SIGTERM, while daemon threads
have sessions. What the interpreter does at its exit lasts long enough for every hub to wake.

``server`` runs a WebSocketServer in a daemon thread, ``threads`` werkzeug's, with a thread for each
session. ``client`` has a connection of ``greenws.connect()`` in one, and ``blocked`` has it in a
thread that waits for something else. ``joined`` waits for the server's thread in a function that
was registered with atexit before greenws was imported, and ``flushing`` for something else there.
"""

import atexit
import signal
import sys
import threading
import time

KIND = sys.argv[1]


def join():
    loop.run_callback_threadsafe(gevent.spawn, server.stop, 0)
    thread.join()


if KIND == "joined":
    atexit.register(join)
if KIND == "flushing":
    atexit.register(threading.Event().wait, 0.4)

import gevent  # noqa: E402

from greenws import Routes, WebSocketServer, connect  # noqa: E402

routes = Routes()


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


def serve(begun):
    global loop, server, thread
    loop, thread = gevent.get_hub().loop, threading.current_thread()
    if KIND == "threads":
        from werkzeug.serving import make_server

        server = make_server("127.0.0.1", 0, routes, threaded=True)
    else:
        server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
        server.start()
    begun(server.server_port)
    server.serve_forever()


def talk(port, begun):
    with connect(f"ws://127.0.0.1:{port}/echo") as socket:
        socket.send("hello")
        begun(socket.receive())
        if KIND == "blocked":
            time.sleep(1000)
        socket.receive()


def start(function, *arguments):
    """Starts a daemon thread, and returns what it calls its last argument with."""
    results = []
    begun = threading.Event()

    def tell(result):
        results.append(result)
        begun.set()

    threading.Thread(target=function, args=(*arguments, tell), daemon=True).start()
    begun.wait()
    return results[0]


class Last:
    """Deleted with the last modules, when daemon threads are ended already."""

    def __del__(self, sleep=time.sleep):
        sleep(0.7)  # the clock of each hub ticks every half second


sys.last = Last()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
port = start(serve)
if KIND in ("client", "blocked"):
    start(talk, port)
print(f"ws://127.0.0.1:{port}/echo", flush=True)
while True:
    time.sleep(0.1)  # not signal.pause(), which a signal just before it would not end
