"""The configurations of proxies that the documentation shows, in front of a server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenws import Routes

from ..support.limits import limit, wait_until
from ..support.pages import blocks_in
from ..support.paths import ROOT
from ..support.processes import free_port
from ..support.require import require_program
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame

CONFIGURATIONS = {
    Path(block.caption).name: block.text
    for block in blocks_in(ROOT / "docs" / "howto" / "proxies.md")
    if block.caption
}

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
    {text}
}}
"""


def nginx(text: str, port: int, folder: Path) -> list[str]:
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    path = folder / "nginx.conf"
    path.write_text(NGINX.format(folder=folder, text=text))
    return ["nginx", "-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]


def caddy(text: str, port: int, folder: Path) -> list[str]:
    path = folder / "Caddyfile"
    path.write_text("{\n    admin off\n}\n" + text.replace(":80 {", f"http://127.0.0.1:{port} {{"))
    return ["caddy", "run", "--config", str(path)]


def haproxy(text: str, port: int, folder: Path) -> list[str]:
    path = folder / "haproxy.cfg"
    path.write_text(text.replace("bind :80", f"bind 127.0.0.1:{port}"))
    return ["haproxy", "-f", str(path)]


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME": str(folder)},
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            Peer.connect(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        wait_until(answers)
        yield
    finally:
        process.terminate()
        process.wait(limit(10))


@pytest.mark.parametrize(
    ("name", "command"),
    [("app.conf", nginx), ("Caddyfile", caddy), ("haproxy.cfg", haproxy)],
    ids=["nginx", "caddy", "haproxy"],
)
def test_a_proxy(
    serve: Any, tmp_path: Path, name: str, command: Callable[[str, int, Path], list[str]]
) -> None:
    require_program(command.__name__)
    routes = Routes()
    seen = []

    @routes.websocket("/echo")
    def echo(request: Any, socket: Any) -> None:
        seen.append((socket.remote_address[0], request.scheme, request.host))
        for message in socket:
            socket.send(message)

    server = serve(routes, trusted_proxies=1)
    text = CONFIGURATIONS[name].replace("127.0.0.1:8000", f"127.0.0.1:{server.server_port}")
    port = free_port()
    address = ("127.0.0.1", port)
    with running(command(text, port, tmp_path), port, tmp_path):
        origin = f"http://127.0.0.1:{port}"
        with Peer.open(address, "/echo", Host=f"127.0.0.1:{port}", Origin=origin) as peer:
            peer.send(frame(TEXT, b"hello"))
            assert peer.read_frame() == (True, TEXT, b"hello")
            peer.send(close_frame())
            assert peer.read_frame()[1] == CLOSE
        assert seen == [("127.0.0.1", "http", f"127.0.0.1:{port}")]
        with Peer.connect(address) as peer:
            peer.send(f"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert peer.read_response().status == 404
