"""Each step of the tutorial, run as its reader would run it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..support.limits import limit
from ..support.paths import ROOT
from ..support.processes import Process, children, connect
from ..support.redis_server import RedisServer
from ..support.require import require_program

TUTORIAL = ROOT / "examples" / "tutorial"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes = []

    def start(step: str, *command: str, **env: str) -> Process:
        process = Process(*command, cwd=TUTORIAL / step, **env)
        processes.append(process)
        return process.wait_for_port()

    yield start
    for process in processes:
        process.stop()
        process.assert_no_trouble()


def log_in(process: Process, name: str) -> dict[str, str]:
    connection = http.client.HTTPConnection(*process.address, timeout=limit())
    connection.request("POST", "/login", f"name={name}", FORM)
    response = connection.getresponse()
    assert (response.status, response.getheader("Location")) == (302, "/")
    cookie = (response.getheader("Set-Cookie") or "").split(";")[0]
    response.read()
    connection.request("GET", "/", headers={"Cookie": cookie})
    assert f"Hello {name}".encode() in connection.getresponse().read()
    connection.close()
    return {"Cookie": cookie}


def test_1_echo(start: Callable[..., Process]) -> None:
    process = start("1_echo", "app.py", PORT="0")
    with pytest.raises(InvalidStatus) as refused, connect(process.url("/echo")):
        pass
    assert refused.value.response.status_code == 401
    headers = log_in(process, "ann")
    with connect(process.url("/echo"), additional_headers=headers) as socket:
        socket.send("hello")
        assert socket.recv(timeout=limit()) == "ann: hello"


def text_of(socket) -> dict[str, str]:
    while "text" not in (message := json.loads(socket.recv(timeout=limit()))):
        pass
    return message


def test_2_chat(start: Callable[..., Process]) -> None:
    process = start("2_chat", "app.py", PORT="0")
    ann = connect(process.url("/chat"), additional_headers=log_in(process, "ann"))
    bob = connect(process.url("/chat"), additional_headers=log_in(process, "bob"))
    with ann as ann_socket, bob as bob_socket:
        assert [name for _, name in json.loads(ann_socket.recv())["present"]] == ["ann"]
        assert json.loads(ann_socket.recv(timeout=limit()))["name"] == "bob"
        ann_socket.send("hello")
        assert text_of(bob_socket)["text"] == text_of(ann_socket)["text"] == "hello"


def test_3_workers(start: Callable[..., Process]) -> None:
    """A worker is killed, and its clients miss nothing."""
    require_program("redis-server")
    redis = RedisServer()
    try:
        command = [
            "-m",
            "gunicorn",
            "-k",
            "greenws.gunicorn.Worker",
            "-w",
            "2",
            "-b",
            "127.0.0.1:0",
        ]
        process = start("3_workers", *command, "app:app", REDIS_URL=redis.url)
        ann, bob = log_in(process, "ann"), log_in(process, "bob")
        with connect(process.url("/chat"), additional_headers=bob) as socket:
            socket.send("first")
            last = text_of(socket)["id"]
            started = len(process.lines)
            for worker in children(process.popen.pid):
                os.kill(worker, signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                while True:
                    socket.recv(timeout=limit(20))
        process.wait_for("Booting worker", start=started)
        with connect(process.url("/chat"), additional_headers=ann) as socket:
            socket.send("while bob was away")
            text_of(socket)
        with connect(process.url(f"/chat?since={last}"), additional_headers=bob) as socket:
            assert text_of(socket)["text"] == "while bob was away"
    finally:
        process.stop()
        process.lines[:] = [line for line in process.lines if "was sent SIGKILL" not in line]
        redis.stop()


def test_4_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=TUTORIAL / "4_tests",
        capture_output=True,
        text=True,
        timeout=limit(30),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


def test_5_production(start: Callable[..., Process]) -> None:
    process = start(
        "5_production",
        *["-m", "gunicorn", "-c", "gunicorn.conf.py", "-b", "127.0.0.1:0", "-w", "1", "app:app"],
        SECRET_KEY="secret",
    )
    connection = http.client.HTTPConnection(*process.address, timeout=limit())
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    connection.request("POST", "/login", "name=ann", {**FORM, "X-Forwarded-Proto": "https"})
    response = connection.getresponse()
    assert "Secure" in (response.getheader("Set-Cookie") or "")
    connection.close()


def test_the_nginx_of_step_5(tmp_path: Path) -> None:
    require_program("nginx")
    path = tmp_path / "nginx.conf"
    text = (TUTORIAL / "5_production" / "nginx.conf").read_text()
    path.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{text}\n}}\n")
    command = ["nginx", "-t", "-p", tmp_path, "-c", path, "-e", tmp_path / "error.log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit())
    assert "syntax is ok" in done.stderr, done.stderr


def test_a_step_has_what_the_one_before_has() -> None:
    """Copies do not drift apart."""
    steps = sorted(path for path in TUTORIAL.iterdir() if path.is_dir())
    for name in ("templates/index.html", "static/reconnecting.js"):
        assert len({(step / name).read_text() for step in steps[1:]}) == 1
    assert len({(step / "templates/login.html").read_text() for step in steps}) == 1
    ours = (ROOT / "webroot" / "reconnecting.js").read_text()
    assert (steps[1] / "static" / "reconnecting.js").read_text() == ours
