"""Every example, as a process of its own, spoken to as its docstring says."""

from __future__ import annotations

import hashlib
import http.client

import pytest
from websockets.exceptions import InvalidStatus

from .support.limits import limit
from .support.paths import ROOT
from .support.processes import Process, connect

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run():
    processes = []

    def start(name):
        process = Process(EXAMPLES / name, "--port", "0")
        processes.append(process)
        return process.wait_for_port()

    yield start
    for process in processes:
        process.stop()
        process.assert_no_trouble()


def test_all_of_them_are_listed_and_tested():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    tested = (ROOT / "tests" / "test_examples.py").read_text()
    assert names
    assert [name for name in names if name not in listed or name not in tested] == []


def test_wsgi_app(run):
    process = run("wsgi_app.py")
    connection = http.client.HTTPConnection(*process.address, timeout=limit())
    connection.request("GET", "/")
    assert b"clock" in connection.getresponse().read()
    connection.close()
    with connect(process.url("/time")) as ws:
        assert len(ws.recv(timeout=limit()).split(":")) == 3


def test_flask_login_app(run):
    process = run("flask_login_app.py")
    with pytest.raises(InvalidStatus) as caught, connect(process.url("/inbox")):
        pass
    assert caught.value.response.status_code == 401
    connection = http.client.HTTPConnection(*process.address, timeout=limit())
    connection.request(
        "POST", "/login", "name=ada", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    cookie = connection.getresponse().headers["Set-Cookie"].split(";")[0]
    connection.close()
    with connect(process.url("/inbox"), additional_headers={"Cookie": cookie}) as ws:
        assert ws.recv(timeout=limit()) == "Welcome, ada."
        ws.send("hi")
        assert ws.recv(timeout=limit()) == "ada said: hi"


def test_subprotocols(run):
    process = run("subprotocols.py")
    for offered, chosen, answer in (
        (["upper"], "upper", "ABC"),
        (["other", "reverse", "upper"], "reverse", "cba"),
    ):
        with connect(process.url(), subprotocols=offered) as ws:
            assert ws.subprotocol == chosen
            ws.send("abc")
            assert ws.recv(timeout=limit()) == answer
    with pytest.raises(InvalidStatus), connect(process.url(), subprotocols=["other"]):
        pass


def test_upload(run):
    process = run("upload.py")
    pieces = [bytes([i % 256]) * 65_536 for i in range(200)]
    with connect(process.url()) as ws:
        ws.send(pieces)
        expected = hashlib.sha256(b"".join(pieces)).hexdigest()
        assert ws.recv(timeout=limit(20)) == f"{200 * 65_536} bytes, {expected}"
        with open(f"/proc/{process.popen.pid}/status") as status:
            peak = next(line for line in status if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 100_000  # kB: the upload alone was 13,000


def test_gevent_websocket_app(run):
    process = run("gevent_websocket_app.py")
    with connect(process.url()) as one, connect(process.url()) as two:
        assert (one.recv(timeout=limit()), two.recv(timeout=limit())) == ("welcome", "welcome")
        one.send("hello")
        assert (one.recv(timeout=limit()), two.recv(timeout=limit())) == ("hello", "hello")
    process.wait_for("a client left")
