"""Programs built on gevent-websocket, unchanged, with greenws underneath."""

from __future__ import annotations

import subprocess
import sys

import gevent.socket
import pytest

from ..support.limits import limit, wait_until
from ..support.paths import PROGRAMS
from ..support.processes import Process, connect, free_port


@pytest.mark.parametrize("how", ["server", "install"])
def test_flask_socketio(how):
    with Process(PROGRAMS / "socketio_server.py", how, str(free_port())) as server:
        server.wait_for_port()
        wait_until(lambda: answers(server.port))  # it may say so before it listens
        with Process(PROGRAMS / "socketio_client.py", str(server.port), "websocket") as client:
            client.wait_for("^done$")
        server.wait_for("^disconnected")
        with Process(PROGRAMS / "socketio_client.py", str(server.port), "polling") as client:
            client.wait_for("^done$")
        server.assert_no_trouble()
    assert "handler: UpgradeHandler" in server.output


def answers(port: int) -> bool:
    with gevent.socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_bottle_websocket():
    with Process(PROGRAMS / "bottle_server.py", str(free_port())) as server:
        server.wait_for_port()
        wait_until(lambda: answers(server.port))  # bottle says so before it listens
        with connect(server.url("/echo/ada")) as ws:
            ws.send("hi")
            assert ws.recv(timeout=limit(20)) == "ada: hi"
        server.wait_for("^left$")
        server.assert_no_trouble()
    assert "handler: UpgradeHandler" in server.output


def test_gunicorn_with_the_originals_worker():
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "1", "-k"]
    worker = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
    with Process(*command, worker, "gevent_websocket_app:app") as server:
        server.wait_for("Booting worker")
        server.wait_for_port()
        with connect(server.url()) as ws:
            ws.send("hi")
            assert ws.recv(timeout=limit(20)) == "UpgradeHandler: hi"
        server.assert_no_trouble()


def test_install_sets_the_limits_and_changes_what_is_loaded_already():
    source = """
import geventwebsocket.gunicorn.workers as workers
from geventwebsocket import handler, server
from greenws import Config, UpgradeHandler
from greenws.integrations.gevent_websocket import install
config = Config(max_message_size=7)
install(config)
assert UpgradeHandler.config is config
assert handler.WebSocketHandler is UpgradeHandler
assert server.WebSocketServer.handler_class is UpgradeHandler
assert workers.GeventWebSocketWorker.wsgi_handler is UpgradeHandler
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
