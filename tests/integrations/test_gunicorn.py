"""gunicorn, with its gevent and its gthread worker, in front of a Flask application."""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
import websocket
import websockets

import greenws

from ..support.limits import again_after_standstill, eventually, limit
from ..support.paths import ROOT
from ..support.processes import TROUBLE, Process, children, connect, descriptors
from ..support.wire import BINARY, CLOSE, TEXT, Peer, close_frame, frame, request

WORKERS = {
    "gevent": ["-k", "gevent"],
    "gthread": ["-k", "gthread", "--threads", "8"],
    "greenws": ["-k", "greenws.gunicorn.Worker"],
}


def gunicorn(*options: str, app: str = "flask_app:app", cwd: Path | None = None) -> Process:
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "1", "--log-level", "info"]
    process = Process(*command, "--graceful-timeout", "2", *options, app, cwd=cwd)
    try:
        process.wait_for(r"Booting worker")
        return process.wait_for_port()
    except BaseException:
        process.stop()
        raise


@pytest.fixture(scope="module", params=WORKERS)
def worker(request: pytest.FixtureRequest) -> Iterator[Process]:
    with gunicorn(*WORKERS[request.param]) as process:
        process.kind = request.param
        yield process


@pytest.fixture(autouse=True)
def no_trouble(request: pytest.FixtureRequest) -> Iterator[None]:
    """No line of gunicorn's log speaks of an error, unless the test expects one."""
    yield
    if "worker" in request.fixturenames:
        process = request.getfixturevalue("worker")
        assert get(process, "/hello") == "hello"
        process.assert_no_trouble()


def get(process: Process, path: str, status: int = 200) -> str:
    connection = http.client.HTTPConnection(*process.address, timeout=limit(10))
    connection.request("GET", path, headers={"Connection": "close"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == status, body
    return body


def converse(peer: Peer, text: bytes) -> bytes:
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


def finish(peer: Peer) -> None:
    peer.send(close_frame(1000))
    assert peer.read_close() == (1000, b"")
    peer.close()


def test_the_extra_brings_what_gunicorn_s_gevent_worker_imports():
    requirements = importlib.metadata.requires("greenws-wsgi")
    assert 'gunicorn[gevent]>=23; extra == "gunicorn"' in requirements


def test_echo(worker):
    with connect(worker.url("/echo"), subprotocols=["chat", "echo"]) as client:
        assert client.subprotocol == "echo"
        for message in ["hello", b"\x00\xff", "", "x" * 200_000, b"y" * (1 << 20)]:
            client.send(message)
            assert client.recv(limit(10)) == message
        assert client.ping(b"ping").wait(limit(10))
        client.close(4000, "bye")
    assert client.protocol.close_rcvd.code == 4000


def test_the_close_handshake_is_clean(worker):
    with connect(worker.url("/goodbye")) as client:
        assert client.recv(limit(10)) == "goodbye"
        with pytest.raises(websockets.ConnectionClosed) as caught:
            client.recv(limit(10))
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "enough")
    with Peer.open(worker.address, "/goodbye") as peer:
        assert peer.read_frame() == (True, TEXT, b"goodbye")
        assert peer.read_frame() == (True, 8, b"\x0f\xa0enough")
        peer.send(close_frame(4000))
        assert peer.at_end()  # nothing of HTTP behind it
    with Peer.open(worker.address, "/echo") as peer:
        finish(peer)


def test_timeouts_and_pings_of_the_session(worker):
    with connect(worker.url("/ping")) as client:
        assert client.recv(limit(10)) == "INVALID True"
        assert client.recv(limit(10)) == "answered: True"


def test_sessions_at_once(worker):
    """One less than there are threads; any number under gevent."""
    count = 7 if worker.kind == "gthread" else 100
    peers = [Peer.open(worker.address, "/echo") for _ in range(count)]
    for round_ in range(3):
        for number, peer in enumerate(peers):
            text = b"%d %d" % (number, round_)
            assert converse(peer, text) == text
    assert get(worker, "/hello") == "hello"
    for peer in peers:
        finish(peer)


def test_many_sessions_one_after_the_other(worker):
    """Many more than threads, from four clients at once."""

    def visit(number: int) -> None:
        with connect(worker.url("/echo")) as client:
            client.send(f"visitor {number}")
            assert client.recv(limit(10)) == f"visitor {number}"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(60)))


def test_frames_in_the_handshake_s_own_segment(worker):
    large = frame(BINARY, b"bird" * 5000)
    behind = frame(TEXT, b"early") + large[:9000]
    with Peer.open(worker.address, "/echo", behind) as peer:
        assert peer.read_frame() == (True, TEXT, b"early")
        peer.send(large[9000:])
        assert peer.read_frame() == (True, BINARY, b"bird" * 5000)
        finish(peer)


def test_a_send_from_another_request_reaches_a_session_that_reads(worker):
    with Peer.open(worker.address, "/listen") as peer:
        assert peer.read_frame() == (True, TEXT, b"listening")
        assert get(worker, "/tell/news") == "told 1"
        assert peer.read_frame() == (True, TEXT, b"request: news")
        assert peer.read_frame() == (True, TEXT, b"thread: news")
        finish(peer)
    eventually(lambda: get(worker, "/tell/nobody"), "told 0")


@pytest.mark.parametrize(("path", "status"), [("/secret", 401), ("/nowhere", 404), ("/hello", 200)])
def test_a_plain_answer_to_a_handshake(worker, path, status):
    with Peer.connect(worker.address) as peer:
        assert peer.shake(path).status == status


def test_a_plain_request_for_a_websocket_view(worker):
    assert "WebSocket endpoint" in get(worker, "/echo", 426)


def test_http_keeps_its_connections(worker):
    connection = http.client.HTTPConnection(*worker.address, timeout=limit(10))
    for _ in range(3):
        connection.request("GET", "/hello")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"hello")
        sock = connection.sock
        connection.request("POST", "/length", body=b"x" * 100_000)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"100000")
        assert connection.sock is sock is not None
    connection.close()


def test_a_refused_handshake_is_answered_with_http(worker):
    """Behind it, our own server reads no more HTTP; others decide for themselves."""
    with Peer.connect(worker.address) as peer:
        assert peer.shake("/secret").status == 401
        if worker.kind == "greenws":
            assert peer.at_end()
    with Peer.connect(worker.address) as peer:
        assert peer.shake("/echo").status == 101
        assert converse(peer, b"hello") == b"hello"
        finish(peer)


def test_nothing_of_http_follows_a_session_that_was_cut_off(worker):
    """No Close and no end of the stream went out before: the socket itself must be shut."""
    before = int(get(worker, "/cut-off"))
    with Peer.open(worker.address, "/flood") as peer:
        eventually(lambda: int(get(worker, "/cut-off")), before + 1)  # write_timeout
        data = bytearray(peer.buffer)
        try:
            while chunk := peer.sock.recv(1 << 20):
                data += chunk
        except ConnectionResetError:
            pass
    assert b"HTTP" not in data


def test_clients_that_vanish(worker):
    for _ in range(3):
        Peer.open(worker.address, "/echo").reset()
        with Peer.open(worker.address, "/echo") as peer:
            peer.send(frame(TEXT, b"half a frame")[:5])


def test_descriptors_come_back(worker):
    (pid,) = children(worker.popen.pid)

    def round_() -> None:
        peers = [Peer.open(worker.address, "/echo") for _ in range(6)]
        for peer in peers:
            assert converse(peer, b"hello") == b"hello"
        for peer in peers[:3]:
            finish(peer)
        for peer in peers:
            peer.close()

    def open_now() -> list[str]:
        get(worker, "/hello")
        return [target for target in descriptors(pid) if target != "socket:[]"]

    round_()
    # gthread's thread has one, and so has the hub of each session that has not ended. A hub of
    # gevent's has one, and one for our sockets, which stays as long as the hub.
    polls = 1 if worker.kind == "gthread" else 2
    eventually(lambda: open_now().count("anon_inode:[eventpoll]"), polls)
    before = open_now()
    for _ in range(3):
        round_()
    eventually(open_now, before)


def test_what_middleware_changed_counts(worker):
    """In gunicorn also behind wsgiref's validator, which wraps ``wsgi.input``."""
    with Peer.open(
        worker.address,
        "/changed",
        early=frame(TEXT, b"early"),
        Sec_WebSocket_Protocol="chat, c2VjcmV0Cg==",
        Sec_WebSocket_Extensions="permessage-deflate",
    ) as peer:
        assert peer.read_frame() == (True, TEXT, b"('192.0.2.7', 0) early")
        assert peer.read_frame()[1] == 8


@pytest.mark.parametrize(
    "kind, app", [*((kind, "flask_app:app") for kind in WORKERS), ("gthread", "crash_app:app")]
)
def test_an_error_in_the_session_is_logged_once(kind, app):
    with gunicorn(*WORKERS[kind], app=app) as process:
        with Peer.open(process.address, "/crash") as peer:
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        process.wait_for("ValueError: of the handler")
        with Peer.open(process.address, "/echo") as peer:
            finish(peer)
    assert process.output.count("Traceback") == 1
    assert process.output.count("ValueError: of the handler") == 1


@pytest.mark.parametrize("kind", WORKERS)
def test_it_stops_while_sessions_are_open(kind):
    """SIGTERM ends gunicorn within its graceful timeout, whatever its sessions do."""
    with gunicorn(*WORKERS[kind]) as process:
        with Peer.open(process.address, "/echo") as peer:
            assert converse(peer, b"hello") == b"hello"
            process.popen.terminate()
            process.popen.wait(limit(10))
    assert process.popen.returncode == 0
    lines = [line for line in process.lines if TROUBLE.search(line)]
    assert [line for line in lines if not re.search("SIGKILL|SIGTERM", line)] == []


EARLY = """
import os, signal
from greenws.gunicorn import Worker

class Early(Worker):
    def patch(self):
        if not os.path.exists("asked"):
            open("asked", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        super().patch()

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


def test_a_worker_that_must_end_before_it_has_begun_ends(tmp_path):
    (tmp_path / "early.py").write_text(EARLY)
    options = ["-k", "early.Early", "--graceful-timeout", "30"]
    with gunicorn(*options, app="early:app", cwd=tmp_path) as process:
        process.wait_for(r"Worker exiting")
        eventually(lambda: process.output.count("Booting worker"), 2)  # another in its place
        assert get(process, "/") == "hello"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_handler_that_does_not_end_is_killed_in_time_to_clean_up(number):
    with gunicorn(*WORKERS["greenws"], "--graceful-timeout", "3") as process:
        with Peer.open(process.address, "/busy") as peer:
            assert peer.read_frame() == (True, TEXT, b"busy")
            process.popen.send_signal(number)
            process.wait_for(r"\[WARNING\] killing 1 requests and sessions that did not end")
            process.wait_for("the handler has cleaned up")
        process.wait_for(r"Worker exiting")
        if number == signal.SIGTERM:
            assert process.popen.wait(limit(10)) == 0
        process.assert_no_trouble()


def visit_and_crash(process: Process) -> None:
    with Peer.open(process.address, "/echo") as peer:
        finish(peer)
    with Peer.open(process.address, "/crash") as peer:
        assert peer.read_frame() == (True, 8, b"\x03\xf3")
        peer.send(close_frame(1011))
    process.wait_for("ValueError: of the handler")


TIME = r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
HEAD = r"^\[[-\d]+ [:\d]+ [+-]\d{4}\] \[\d+\] \[ERROR\]"


def test_sessions_and_errors_are_in_the_logs_of_gunicorn():
    options = [*WORKERS["greenws"], "--access-logfile", "-"]
    with gunicorn(*options, app="crash_app:app") as process:
        visit_and_crash(process)
        process.wait_for(rf'^{TIME} 127\.0\.0\.1 "/echo" - closed 1000 by peer')
        process.wait_for(rf"{HEAD} session failed: '/crash'")
    assert process.output.count("closed 1000") == process.output.count("session failed") == 1


def test_without_gunicorns_access_log_sessions_are_not_logged():
    with gunicorn(*WORKERS["greenws"], app="crash_app:app") as process:
        visit_and_crash(process)
        process.wait_for(rf"{HEAD} session failed: '/crash'")
    assert "closed 1000" not in process.output


def test_logging_that_the_application_set_up_is_left_alone(tmp_path):
    setup = "import logging; logging.basicConfig(format='own: %(message)s', level='INFO')\n"
    (tmp_path / "own.py").write_text(setup + "from crash_app import app")
    with gunicorn(*WORKERS["greenws"], app="own:app", cwd=tmp_path) as process:
        visit_and_crash(process)
        process.wait_for(r'^own: 127\.0\.0\.1 "/echo" - closed 1000 by peer')
        process.wait_for(r"^own: session failed: '/crash'")
    assert process.output.count("closed 1000") == process.output.count("session failed") == 1


def test_connections_without_a_request_do_not_hold_up_its_end():
    with (
        gunicorn(*WORKERS["greenws"], "--graceful-timeout", "30") as process,
        contextlib.closing(http.client.HTTPConnection(*process.address, timeout=limit(10))) as kept,
        socket.create_connection(process.address) as silent,
    ):
        kept.request("GET", "/hello")
        assert kept.getresponse().read() == b"hello"
        process.popen.terminate()
        assert process.popen.wait(limit(10)) == 0
        assert kept.sock.recv(1) == silent.recv(1) == b""
        process.assert_no_trouble()


@again_after_standstill(0.2)
def test_a_worker_that_ends_answers_what_follows_on_a_connection_at_work():
    """Also a request that is not answered yet when those before it have been for a while."""
    post = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    with (
        gunicorn(*WORKERS["greenws"], "--graceful-timeout", "30") as process,
        Peer.connect(process.address) as peer,
    ):
        peer.send(post + b"abc" + post)
        assert peer.read_response().body == b"3"  # so the next one is being answered
        process.popen.terminate()
        eventually(lambda: refuses(process.address), True)
        assert peer.is_silent(0.8)  # longer than a worker waits for what may be on its way
        peer.send(b"abc")
        assert peer.read_response().body == b"3"
        assert peer.is_silent(0.1)  # nobody works, and the worker has seen it
        peer.send(post)
        assert peer.is_silent(0.8)
        peer.send(b"abc")
        last = peer.read_response()
        assert (last.body, last.headers["connection"]) == (b"3", "close")
        assert peer.at_end()
        assert process.popen.wait(limit(10)) == 0
        process.assert_no_trouble()


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


class Certificate:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.certfile, self.keyfile = folder / "cert.pem", folder / "key.pem"
        certificate.cert_chain_pems[0].write_to_path(self.certfile)
        certificate.private_key_pem.write_to_path(self.keyfile)
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


@pytest.mark.parametrize("kind", WORKERS)
def test_tls(kind: str, certificate: Certificate):
    files = ["--certfile", str(certificate.certfile), "--keyfile", str(certificate.keyfile)]
    with gunicorn(*WORKERS[kind], *files) as process:
        with TlsClient(process.url("/echo", "wss"), certificate.context) as client:
            for message in ["hello", "x" * 200_000, b"y" * (1 << 20)]:
                client.send(message)
                assert client.recv() == message
            pipeline = [f"message {number}" for number in range(200)]
            for message in pipeline:
                client.send(message)
            assert [client.recv() for _ in pipeline] == pipeline
            assert client.close(4000) == 4000
        with TlsClient(process.url("/ping", "wss"), certificate.context) as client:
            assert client.recv() == "INVALID True"
            assert client.recv() == "answered: True"
        with pytest.raises(greenws.HandshakeError) as caught:
            greenws.connect(process.url("/secret", "wss"), ssl_context=certificate.context)
        assert caught.value.status == 401
    process.assert_no_trouble()


class TlsClient:
    """websocket-client: websockets' client reads in one thread and writes in another, and some of
    its connections over TLS are lost by that, with any server."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        options = {"context": context}
        self._socket = websocket.create_connection(url, timeout=limit(20), sslopt=options)

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._socket.send(message)
        else:
            self._socket.send_binary(message)

    def recv(self) -> str | bytes:
        opcode, data = self._socket.recv_data()
        return data.decode() if opcode == TEXT else data

    def close(self, code: int) -> int:
        """The code of the server's Close."""
        self._socket.send_close(code)
        opcode, data = self._socket.recv_data()
        assert opcode == CLOSE
        return int.from_bytes(data[:2], "big")

    def __enter__(self) -> TlsClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown()


def served_by(process: Process, name: str | None = None) -> bytes | None:
    """The certificate that a new connection gets; ``name``: what it asks for."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(process.address, limit(10)) as sock:
        with context.wrap_socket(sock, server_hostname=name) as secured:
            return secured.getpeercert(binary_form=True)


SNI = """
def ssl_context(conf, make_default):
    def choose(sock, name, context):
        if name == "other":
            chosen = make_default()
            chosen.load_cert_chain("other/cert.pem", "other/key.pem")
            sock.context = chosen

    context = make_default()
    context.sni_callback = choose
    return context
"""


def test_a_hook_may_choose_the_certificate_by_the_name_that_is_asked_for(tmp_path):
    used, other = Certificate(tmp_path / "used"), Certificate(tmp_path / "other")
    (tmp_path / "gunicorn.conf.py").write_text(SNI)
    files = ["--certfile", str(used.certfile), "--keyfile", str(used.keyfile)]
    with gunicorn(*WORKERS["greenws"], *files, cwd=tmp_path, app="echo_app:app") as process:
        served = {name: served_by(process, name) for name in ("127.0.0.1", "other")}
        for each, name in ((used, "127.0.0.1"), (other, "other")):
            assert served[name] == ssl.PEM_cert_to_DER_cert(each.certfile.read_text())
    assert "Warning" not in process.output


def write_over(target: Certificate, source: Certificate) -> None:
    target.certfile.write_bytes(source.certfile.read_bytes())
    target.keyfile.write_bytes(source.keyfile.read_bytes())


def test_after_a_reload_with_a_wrong_certificate_the_last_good_one_is_served(tmp_path):
    """Also by a worker that takes the place of one that died; the next reload takes the new one."""
    used, other = Certificate(tmp_path / "used"), Certificate(tmp_path / "other")
    files = ["--certfile", str(used.certfile), "--keyfile", str(used.keyfile)]
    with gunicorn(*WORKERS["greenws"], *files) as process:
        first = served_by(process)
        used.certfile.write_bytes(other.certfile.read_bytes())  # which needs another key
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for(
            r"\[ERROR\] greenws.gunicorn.Worker: .*cannot use .*used/cert.pem and .*used/key.pem.*"
            "; the workers keep the previous certificate"
        )
        eventually(lambda: process.output.count("Booting worker"), 2, 20)
        eventually(lambda: len(children(process.popen.pid)), 1, 20)
        used.certfile.unlink()
        os.kill(children(process.popen.pid)[0], signal.SIGKILL)
        process.wait_for(r"No such file.*used/cert.pem.*; the workers keep the previous cert")
        eventually(lambda: process.output.count("Booting worker"), 3, 20)
        assert served_by(process) == first
        with TlsClient(process.url("/ping", "wss"), used.context) as client:
            assert client.recv() == "INVALID True"
        write_over(used, other)
        process.popen.send_signal(signal.SIGHUP)
        eventually(lambda: process.output.count("Worker exiting"), 2, 20)
        assert served_by(process) not in (None, first)
    assert "Traceback" not in process.output


def test_a_first_certificate_by_a_reload_that_is_wrong_leaves_it_without_tls(tmp_path):
    """The next reload takes the right one."""
    used, other = Certificate(tmp_path / "used"), Certificate(tmp_path / "other")
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text("")
    with gunicorn(*WORKERS["greenws"], "-c", str(conf)) as process:
        conf.write_text(f"certfile, keyfile = {str(used.certfile)!r}, {str(other.keyfile)!r}\n")
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for(
            r"\[ERROR\] greenws.gunicorn.Worker: .*cannot use .*used/cert.pem and .*other/key.pem"
            ".*; the workers go on without TLS"
        )
        eventually(lambda: process.output.count("Worker exiting"), 1, 20)
        with connect(process.url("/ping")) as client:
            assert client.recv(limit(20)) == "INVALID True"
        conf.write_text(f"certfile, keyfile = {str(used.certfile)!r}, {str(used.keyfile)!r}\n")
        process.popen.send_signal(signal.SIGHUP)
        eventually(lambda: process.output.count("Worker exiting"), 2, 20)
        with greenws.connect(process.url("/ping", "wss"), ssl_context=used.context) as own:
            assert own.receive(limit(20)) == "INVALID True"
    assert "Traceback" not in process.output


def test_authorities_that_are_no_pem_are_named(certificate, tmp_path):
    wrong = tmp_path / "authorities.pem"
    wrong.write_text("nonsense")
    files = ["--certfile", str(certificate.certfile), "--keyfile", str(certificate.keyfile)]
    files += ["--ca-certs", str(wrong)]
    with Process("-m", "gunicorn", *WORKERS["greenws"], *files, "flask_app:app") as process:
        assert process.popen.wait(limit(20)) != 0
    assert re.search(r"\[ERROR\] greenws.*cannot use ca_certs .*authorities.pem", process.output)


def test_a_wrong_certificate_ends_gunicorn_at_its_start(certificate):
    certificate.keyfile.write_text("nonsense")
    files = ["--certfile", str(certificate.certfile), "--keyfile", str(certificate.keyfile)]
    with Process("-m", "gunicorn", *WORKERS["greenws"], *files, "flask_app:app") as process:
        assert process.popen.wait(limit(20)) != 0
    assert re.search(r"\[ERROR\] greenws.*cannot use .*cert.pem and .*key.pem", process.output)
    assert "Traceback" not in process.output


def test_after_a_reload_with_a_wrong_setting_the_last_good_ones_count(tmp_path):
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text("from greenws import Config\ngreenws_config = Config(max_message_size=5)\n")
    options = [*WORKERS["greenws"], "-c", str(conf)]
    with gunicorn(*options) as process:
        conf.write_text("greenws_config = {'max_message_size': 6}\n")
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for("greenws_config must be .*; the workers keep the previous settings")
        process.wait_for("Worker exiting")
        eventually(lambda: process.output.count("Booting worker"), 2, 20)
        with Peer.open(process.address, "/echo") as peer:
            peer.send(frame(TEXT, b"123456"))
            assert peer.read_close(answer=True)[0] == 1009


def test_without_gunicorn_the_import_says_what_to_install(tmp_path):
    (tmp_path / "gunicorn.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'gunicorn'\")"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", "import greenws.gunicorn"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: greenws.gunicorn needs gunicorn: pip install")
    assert "'greenws-wsgi[gunicorn]'" in last


BALANCED = """
import os
from greenws import Routes

app = Routes()

@app.websocket("/")
def session(request, socket):
    socket.send(str(os.getpid()))
    for message in socket:
        socket.send(message)
"""


def processes_of(process: Process, count: int, at_once: bool) -> Counter[bytes]:
    """How many of ``count`` clients, all of which stay, each worker has."""
    counts: Counter[bytes] = Counter()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(process.address)) for _ in range(count * at_once)]
        for number in range(count):
            peer = peers[number] if at_once else Peer.connect(process.address)
            stack.enter_context(peer)
            assert peer.shake("/").status == 101
            counts[peer.read_frame()[2]] += 1
    return counts


def test_sessions_are_spread_evenly_over_workers(tmp_path):
    """If they come one after another or at once: the largest is at most 1.3 times the smallest.
    On a busy machine a worker may get no turn for so long that the others do not wait for it; then
    it has its share once more have come."""
    (tmp_path / "balanced.py").write_text(BALANCED)
    options = [*WORKERS["greenws"], "--workers", "3"]
    with gunicorn(*options, app="balanced:app", cwd=tmp_path) as process:
        eventually(lambda: process.output.count("Booting worker"), 3, 20)
        eventually(lambda: len(processes_of(process, 12, True)), 3)  # each has loaded its program
        for at_once in (False, True):
            for clients in (90, 90, 180, 360, 720):
                counts = processes_of(process, clients, at_once)
                if len(counts) == 3 and max(counts.values()) <= 1.3 * min(counts.values()):
                    break
            else:
                pytest.fail(f"{counts}")


def test_who_waits_to_be_accepted_outlives_a_worker(tmp_path):
    """No client that connects while a worker is stopping is reset."""
    (tmp_path / "balanced.py").write_text(BALANCED)
    options = [*WORKERS["greenws"], "--workers", "2"]
    with gunicorn(*options, app="balanced:app", cwd=tmp_path) as process:
        eventually(lambda: process.output.count("Booting worker"), 2, 20)
        first = children(process.popen.pid)[0]
        peers = []
        for number in range(120):
            peer = Peer.connect(process.address)
            peer.send(request("/"))
            peers.append(peer)
            if number == 60:
                os.kill(first, signal.SIGTERM)
        for peer in peers:
            with peer:  # 503: by the one that stops, which had accepted it before
                assert peer.read_response().status in (101, 503)


@pytest.mark.parametrize("kind", WORKERS)
def test_rooms_in_memory_with_several_workers(kind):
    with gunicorn(*WORKERS[kind], "--workers", "2", app="rooms_app:app") as process:
        with connect(process.url("/lobby")):
            process.wait_for("rooms in memory reach only the members of this process")


def test_rooms_in_memory_once_there_are_several_workers():
    """After SIGTTIN, not before; a worker that takes the place of another makes no second one."""
    with gunicorn(*WORKERS["greenws"], app="rooms_app:app") as process:
        os.kill(children(process.popen.pid)[0], signal.SIGKILL)
        eventually(lambda: process.output.count("Booting worker"), 2, 20)
        with connect(process.url("/lobby")) as client:
            client.recv(limit(20))
            assert "rooms in memory" not in process.output
            process.popen.send_signal(signal.SIGTTIN)
            eventually(lambda: process.output.count("Booting worker"), 3, 20)

            def speak() -> bool:
                client.send("{}")
                client.recv(limit(20))
                return "rooms in memory reach only the members of this process" in process.output

            eventually(speak, True)


def test_connections_beyond_those_of_a_worker_wait_which_is_logged(tmp_path):
    (tmp_path / "balanced.py").write_text(BALANCED)
    options = [*WORKERS["greenws"], "--worker-connections", "2"]
    with gunicorn(*options, app="balanced:app", cwd=tmp_path) as process:
        peers = [Peer.open(process.address, "/") for _ in range(2)]
        with Peer.connect(process.address) as third:
            third.send(request("/"))
            process.wait_for(r"all 2 connections of this worker are taken \(--worker-connections\)")
            peers[0].close()
            assert third.read_response().status == 101
        peers[1].close()
