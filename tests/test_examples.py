"""Every example: its program, run in this process, and what its docstring says of it."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import subprocess
import sys

import gevent
import pytest
from werkzeug.test import Client

import greenws
from greenws import testing

from .support.limits import limit, wait_until
from .support.paths import ROOT
from .support.processes import Process, connect

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as ``python example.py --port 0`` would; gives the URL of its WebSockets."""
    programs = []

    def start(name):
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, "--port", "0"])
        monkeypatch.setattr("gevent.monkey.patch_all", lambda: None)  # this is the tests' process
        programs.append(gevent.spawn(runpy.run_path, path, run_name="__main__"))
        printed = []

        def find_port():
            printed.append(capsys.readouterr().out)
            return re.search(r"\w+://127\.0\.0\.1:(\d+)/", "".join(printed))

        return f"ws://127.0.0.1:{wait_until(find_port)[1]}"

    yield start
    gevent.killall(programs)


def example(name):
    """What an example defines, without its program."""
    return runpy.run_path(str(EXAMPLES / name))


def test_all_of_them_are_listed_and_tested():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    tested = (ROOT / "tests" / "test_examples.py").read_text()
    assert names
    assert [name for name in names if name not in listed or name not in tested] == []


def test_wsgi_app(run):
    application = example("wsgi_app.py")["application"]
    assert "clock" in Client(application).get("/").text
    with testing.connect(application, "/time") as socket, testing.clock() as clock:
        for _ in range(3):
            assert len(socket.receive().split(":")) == 3
            clock.advance(1)
        socket.cut()
        clock.advance(1)
    with greenws.connect(f"{run('wsgi_app.py')}/time") as socket:
        assert len(socket.receive(timeout=limit()).split(":")) == 3


def test_flask_login_app(run):
    app = example("flask_login_app.py")["app"]
    client = app.test_client()
    with pytest.raises(testing.Refused) as refused:
        testing.connect(app, "/inbox", client=client)
    assert refused.value.status_code == 401
    client.post("/login", data={"name": "ada"})
    with testing.connect(app, "/inbox", client=client) as socket:
        assert socket.receive() == "Welcome, ada."
        socket.send("hi")
        assert socket.receive() == "ada said: hi"
    with pytest.raises(greenws.HandshakeError) as caught:
        greenws.connect(f"{run('flask_login_app.py')}/inbox")
    assert caught.value.status == 401


def test_an_example_with_a_framework_patches_first():
    for path in (EXAMPLES / "flask_login_app.py", EXAMPLES / "chat" / "chat.py"):
        head, _, _ = path.read_text().partition("\nfrom flask")
        assert "    monkey.patch_all()" in head, path


def test_subprotocols(run):
    url = run("subprotocols.py")
    for offered, chosen, answer in (
        (["upper"], "upper", "ABC"),
        (["other", "reverse", "upper"], "reverse", "cba"),
    ):
        with greenws.connect(url, subprotocols=offered) as socket:
            assert socket.subprotocol == chosen
            socket.send("abc")
            assert socket.receive(timeout=limit()) == answer
    with pytest.raises(greenws.HandshakeError):
        greenws.connect(url, subprotocols=["other"])


def test_upload():
    pieces = [bytes([i % 256]) * 65_536 for i in range(200)]
    # In a process of its own, whose memory is looked at.
    process = Process(EXAMPLES / "upload.py", "--port", "0")
    with process.wait_for_port(), connect(process.url()) as ws:
        ws.send(pieces)
        expected = hashlib.sha256(b"".join(pieces)).hexdigest()
        assert ws.recv(timeout=limit(20)) == f"{200 * 65_536} bytes, {expected}"
        with open(f"/proc/{process.popen.pid}/status") as status:
            peak = next(line for line in status if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 100_000  # kB: the upload alone was 13,000
    process.assert_no_trouble()


def test_gevent_websocket_app(run, capsys):
    url = run("gevent_websocket_app.py")
    with greenws.connect(url) as one, greenws.connect(url) as two:
        sockets = (one, two)
        assert [socket.receive(timeout=limit()) for socket in sockets] == ["welcome", "welcome"]
        one.send("hello")
        assert [socket.receive(timeout=limit()) for socket in sockets] == ["hello", "hello"]
        one.close()
        wait_until(lambda: "a client left" in capsys.readouterr().out)


# -- the project


def test_the_chat_passes_its_own_tests():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull],
        cwd=EXAMPLES / "chat",
        capture_output=True,
        text=True,
        timeout=limit(60),
    )
    assert " passed in " in done.stdout and done.returncode == 0, done.stdout + done.stderr


def test_the_chat_and_its_bot_as_programs():
    chat = Process("chat.py", "--port", "0", cwd=EXAMPLES / "chat")
    with chat.wait_for_port():
        url = chat.url("/rooms/lobby")
        headers = {"Authorization": "Bearer change me too"}
        with greenws.connect(url, headers=headers) as socket:
            with Process("bot.py", url, cwd=EXAMPLES / "chat"):
                # Another who has the token: both are called "bot", and this one comes first.
                assert socket.receive(timeout=limit(20)) == "* bot has joined"
                assert socket.receive(timeout=limit(20)) == "* bot has joined"
                socket.send("!help")
                assert socket.receive(timeout=limit(20)) == "bot: !help"
                assert socket.receive(timeout=limit(20)) == "bot: I know !roll and !help."
    chat.assert_no_trouble()
