"""The client with servers that are not ours: ``websockets``, aiohttp, uvicorn, Node's ``ws``, Bun,
Flask-SocketIO's transport, and nginx in between."""

from __future__ import annotations

import json
import os
import subprocess

import gevent
import pytest

import greenws
from greenws import Config, ConnectionClosed, Routes

from ..support.limits import limit, wait_until
from ..support.paths import PROGRAMS, TESTS
from ..support.processes import Process, free_port
from ..support.require import require, require_program

NODE = TESTS / "node"

SERVERS = ["websockets", "aiohttp", "uvicorn", "node-ws", "bun"]


@pytest.fixture(scope="module")
def servers():
    """Each is started once, when it is first asked for."""
    running = {}

    def start(name):
        if name not in running:
            if name == "bun":
                program = NODE / "node_modules" / ".bin" / "bun"
                require(program.exists(), "bun (npm install in tests/node)")
                running[name] = Process("serve.mjs", cwd=NODE, program=program)
            elif name == "node-ws":
                require_program("node")
                require((NODE / "node_modules" / "ws").exists(), "ws (npm install in tests/node)")
                running[name] = Process("serve.mjs", cwd=NODE, program="node")
            else:
                pytest.importorskip(name)
                running[name] = Process(PROGRAMS / "other_server.py", name)
            running[name].wait_for_port()
        return running[name]

    yield start
    for server in running.values():
        server.stop()


def connect(url, **options):
    options = {"config": Config(deflate_threshold=0), **options}
    return greenws.connect(url, proxy=None, open_timeout=limit(20), **options)


@pytest.mark.parametrize("name", SERVERS)
def test_messages_come_back(servers, name):
    server = servers(name)
    with connect(server.url()) as socket:
        for size in (0, 1, 125, 126, 5000, 65535, 65536, 300_000):
            text, data = "é" * (size // 2), os.urandom(size)
            socket.send(text)
            socket.send(data)
            assert socket.receive(limit(20)) == text
            assert socket.receive(limit(20)) == data
        socket.send_string_message("frag", final=False)
        socket.send_string_message("ments")
        assert socket.receive(limit(20)) == "fragments"
        assert 0 < socket.ping(limit(20))
        assert "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
    assert socket.close_code == 1000


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    "options",
    [
        {"deflate": False},
        {"deflate_takeover": True, "deflate_peer_takeover": True},
        {"deflate_window_bits": 9},
    ],
    ids=["uncompressed", "takeover", "small-window"],
)
def test_compression_works_however_it_is_negotiated(servers, name, options):
    with connect(servers(name).url(), config=Config(deflate_threshold=0, **options)) as socket:
        for number in range(20):
            text = f"message {number} " * 200
            socket.send(text)
            assert socket.receive(limit(20)) == text
        assert socket.is_connected


@pytest.mark.parametrize("name", SERVERS)
def test_a_subprotocol_is_agreed_on(servers, name):
    with connect(servers(name).url(), subprotocols=["other", "chat"]) as socket:
        assert socket.subprotocol == "chat"


@pytest.mark.parametrize("name", SERVERS)
def test_the_other_end_learns_of_a_close(servers, name):
    server = servers(name)
    with connect(server.url()) as socket:
        socket.send("close")
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive(limit(20))
        assert (caught.value.code, caught.value.reason) == (4001, "bye")
    start = len(server.lines)
    socket = connect(server.url())
    socket.close(3001, "done")
    server.wait_for("^closed 3001", start)


def test_a_server_that_does_not_know_websockets(servers):
    with pytest.raises(greenws.HandshakeError) as caught:
        connect(servers("aiohttp").url("/nothing"))
    assert caught.value.status == 404


def test_the_transport_of_flask_socketio():
    """Engine.IO and Socket.IO, by hand, as packets in messages."""
    with Process(PROGRAMS / "socketio_server.py", "server") as server:
        server.wait_for_port()
        url = server.url("/socket.io/?EIO=4&transport=websocket")
        with connect(url) as socket:
            assert json.loads(socket.receive(limit(20))[1:])["upgrades"] == []
            socket.send("40")
            assert socket.receive(limit(20)).startswith("40{")
            socket.send('42["echo","é"]')
            assert json.loads(socket.receive(limit(20))[2:]) == ["echoed", "é"]
        server.wait_for("^disconnected")
        server.assert_no_trouble()


NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }}
        location /moved {{ return 301 /echo; }}
        location /away {{ return 503; }}
    }}
}}
"""


def test_nginx_in_between(serve, tmp_path):
    require_program("nginx")
    routes = Routes()

    @routes.websocket("/echo")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    port = free_port()
    path = tmp_path / "nginx.conf"
    upstream = serve(routes).server_port
    path.write_text(NGINX.format(folder=tmp_path, port=port, upstream=upstream))
    nginx = subprocess.Popen(
        ["nginx", "-p", tmp_path, "-c", path, "-e", tmp_path / "error.log"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers():
            assert nginx.poll() is None, (tmp_path / "error.log").read_text()
            with gevent.socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers)
        for target in ("/echo", "/moved"):
            with connect(f"ws://127.0.0.1:{port}{target}") as socket:
                socket.send("x" * 200_000)
                assert socket.receive(limit(20)) == "x" * 200_000
        with pytest.raises(greenws.HandshakeError) as caught:
            connect(f"ws://127.0.0.1:{port}/away")
        assert caught.value.status == 503 and caught.value.headers["Server"].startswith("nginx")
    finally:
        nginx.terminate()
        nginx.wait()
