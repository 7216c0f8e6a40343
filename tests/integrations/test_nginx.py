"""Behind a real nginx: who the client is, what page it comes from, and that idle sessions stay."""

from __future__ import annotations

import subprocess
import time

import gevent
import pytest
from gevent import socket as gevent_socket

from greenws import Config, ConnectionClosed, Routes

from ..support.limits import again_after_standstill, limit, wait_until
from ..support.processes import free_port
from ..support.require import require_program
from ..support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame

CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} sndbuf=16k;
        location / {{
            proxy_pass {scheme}://127.0.0.1:{upstream};
            proxy_ssl_server_name on;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Forwarded-Host $host;
            proxy_read_timeout {read_timeout};
        }}
    }}
}}
"""


@pytest.fixture
def behind_nginx(serve, tmp_path):
    """``behind_nginx(app, **options)`` gives the server, and nginx's address in front of it."""
    require_program("nginx")
    processes = []

    def start(app, read_timeout="60s", **options):
        server = serve(app, **options)
        port = free_port()
        path = tmp_path / "nginx.conf"
        scheme = "https" if "ssl_context" in options else "http"
        upstream = server.server_port
        config = {"folder": tmp_path, "port": port, "scheme": scheme, "upstream": upstream}
        path.write_text(CONFIG.format(read_timeout=read_timeout, **config))
        processes.append(
            subprocess.Popen(
                ["nginx", "-p", tmp_path, "-c", path, "-e", tmp_path / "error.log"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

        def answers():
            assert processes[0].poll() is None, (tmp_path / "error.log").read_text()
            try:
                Peer.connect(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return False
            return True

        wait_until(answers)
        return server, ("127.0.0.1", port)

    yield start
    for process in processes:
        process.terminate()
        process.wait(limit(10))


SEEN: list[object] = []


@pytest.fixture
def routes():
    SEEN.clear()
    routes = Routes()

    @routes.websocket("/ws")
    def session(request, socket):
        SEEN.append((socket.remote_address[0], request.scheme, request.host))
        for message in socket:
            socket.send(message)

    return routes


def closed(peer):
    peer.send(close_frame())
    while peer.read_frame()[1] != CLOSE:
        pass


# What a client would like to be; nginx appends the address that it sees.
SPOOFED = {"X_Forwarded_For": "203.0.113.66", "X_Forwarded_Host": "evil.org"}


def test_one_trusted_proxy(behind_nginx, routes):
    server, address = behind_nginx(routes, trusted_proxies=1)
    headers = {"Host": "chat.example", "Origin": "https://chat.example", **SPOOFED}
    with Peer.open(address, "/ws", **headers) as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")
        closed(peer)
    assert SEEN == [("127.0.0.1", "https", "chat.example")]
    with Peer.connect(address) as peer:
        foreign = {**headers, "Origin": "https://evil.org"}
        assert peer.shake("/ws", **foreign).status == 403


def test_one_trusted_hop_too_many_would_believe_the_client(behind_nginx, routes):
    """Why the number is exact: the second hop's word is the client's own."""
    server, address = behind_nginx(routes, trusted_proxies=2)
    with Peer.open(address, "/ws", Host="chat.example", **SPOOFED) as peer:
        closed(peer)
    assert SEEN[0][0] == "203.0.113.66"


def test_an_unannounced_proxy_is_not_believed(behind_nginx, routes):
    server, address = behind_nginx(routes)
    with Peer.open(address, "/ws", Host="chat.example", **SPOOFED) as peer:
        closed(peer)
    assert SEEN == [("127.0.0.1", "http", f"127.0.0.1:{server.server_port}")]
    with Peer.connect(address) as peer:
        response = peer.shake("/ws", Host="chat.example", Origin="https://chat.example")
        assert response.status == 403 and b"trusted_proxies" in response.body


@again_after_standstill(0.2)
def test_pings_keep_an_idle_session_past_the_proxys_timeout(behind_nginx, routes):
    server, address = behind_nginx(
        routes, "1s", trusted_proxies=1, config=Config(ping_interval=0.4, ping_timeout=1)
    )
    with Peer.open(address, "/ws") as peer:
        with gevent.Timeout(1.5, False):  # longer than read_timeout
            while True:
                fin, opcode, payload = peer.read_frame()
                assert opcode == PING
                peer.send(frame(PONG, payload))
        peer.send(frame(TEXT, b"still here"))
        while (received := peer.read_frame())[1] == PING:
            pass
        assert received == (True, TEXT, b"still here")
        closed(peer)


def test_nginx_speaks_tls_to_the_server(behind_nginx, routes, certificates):
    server, address = behind_nginx(routes, trusted_proxies=1, ssl_context=certificates[0])
    payloads = [b"", b"x" * 125, b"y" * 65_536, bytes(1_000_000)]
    with Peer.open(address, "/ws", Host="chat.example") as peer:
        for payload in payloads:  # records of 16 KiB, in both directions at once
            peer.send(frame(BINARY, payload))
            assert peer.read_frame() == (True, BINARY, payload)
        peer.send(b"".join(frame(TEXT, b"%d" % number) for number in range(500)))
        assert [peer.read_frame()[2] for _ in range(500)] == [b"%d" % i for i in range(500)]
        closed(peer)
        assert peer.at_end()
    assert SEEN == [("127.0.0.1", "https", "chat.example")]
    with Peer.open(address, "/ws") as peer:
        peer.send(frame(TEXT, b"again"))
        assert peer.read_frame() == (True, TEXT, b"again")
        closed(peer)


def test_a_stop_reaches_the_clients_behind_the_proxy(behind_nginx, routes):
    server, address = behind_nginx(routes, trusted_proxies=1)
    with Peer.open(address, "/ws") as peer:
        stopping = gevent.spawn(server.stop, grace=5)
        assert peer.read_frame() == (True, CLOSE, b"\x03\xe9")
        peer.send(close_frame(1001))
        peer.close()
        stopping.get(timeout=limit(3))


def test_a_slow_reader_behind_nginx_gets_all_its_bytes(behind_nginx):
    """As far as nginx, which holds little here, shows what the client reads."""
    size = 2_500_000
    for _ in range(5):
        received, lost, longest = read_slowly(behind_nginx, size)
        if longest < 0.4:  # neither nginx nor this process stood still
            break
    assert (received >= size, lost) == (True, [])


def read_slowly(behind_nginx, size):
    lost = []
    routes = Routes()

    @routes.websocket("/")
    def session(request, socket):
        try:
            socket.send(bytes(size))
        except ConnectionClosed as error:
            lost.append(error)

    config = Config(write_timeout=0.8, write_high_water=1, close_timeout=0.8)
    server, address = behind_nginx(routes, config=config)
    server.socket.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, 1 << 20)
    sock = gevent_socket.socket()
    sock.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_RCVBUF, 1 << 14)
    sock.connect(address)
    with Peer(sock, limit()) as peer:
        assert peer.shake().status == 101
        received, longest, began = len(peer.buffer), 0.0, time.monotonic()
        while received < size and (data := sock.recv(1 << 14)):
            received += len(data)
            gevent.sleep(0.04)
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
        return received, lost, max(longest, time.monotonic() - began)
