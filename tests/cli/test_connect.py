"""``python -m greenws connect``: what it sends, prints and returns."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import ssl
import sys

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent import subprocess

from greenws import Routes
from greenws.__main__ import main

from ..support.limits import limit
from ..support.raw_server import raw_server
from ..support.require import require
from ..support.wire import BINARY, TEXT, close_frame, frame


@pytest.fixture
def url(serve):
    routes = Routes()

    @routes.websocket("/echo")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    @routes.websocket("/who", protocols=["chat"])
    def who(request, socket):
        for _message in socket:
            socket.send(f"{request.headers['X-A']} {request.headers['Origin']}")

    @routes.websocket("/late")
    def late(request, socket):
        for message in socket:
            gevent.sleep(0.05)
            socket.send(message)
            socket.close(4000, "enough")

    return f"ws://127.0.0.1:{serve(routes, config=None).server_port}"


@pytest.fixture
def call(monkeypatch, capfdbinary):
    """``call(*arguments, data=...)``: the exit code, the output and the errors."""

    def call(*arguments, data=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        try:
            code = main(["connect", "--proxy", "none", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        output, errors = capfdbinary.readouterr()
        return code, output, errors.decode()

    return call


def test_each_line_is_a_message_and_each_message_a_line(url, call):
    data = "one\r\ntwo é\n\nlast".encode()
    assert call(f"{url}/echo", data=data) == (0, "one\ntwo é\n\nlast\n".encode(), "")


def test_a_binary_input_is_one_message(url, call):
    data = os.urandom(200_000) + b"\n"
    assert call("--binary", f"{url}/echo", data=data) == (0, data, "")


def test_headers_origin_and_subprotocols_are_sent(url, call):
    origin = f"http{url[2:]}"
    more = ["--header", "X-A: 1: 2", "--origin", origin, "-s", "x", "-s", "chat"]
    assert call(f"{url}/who", *more, data=b"?") == (0, f"1: 2 {origin}\n".encode(), "")
    code, output, errors = call(f"{url}/who", "-s", "x", data=b"?")
    assert (code, output) == (1, b"")
    assert "400" in errors


def test_pings_are_timed(url, call):
    code, output, errors = call(f"{url}/echo", "--ping")
    assert (code, output) == (0, b"")
    assert errors.startswith("ping: ") and errors.endswith(" ms\n")


def test_it_waits_for_late_messages_and_reports_an_abnormal_close(url, call):
    code, output, errors = call(f"{url}/late", "--wait", "inf", data=b"x")
    assert (code, output) == (1, b"x\n")
    assert errors == "greenws connect: connection closed: 4000 (application code) enough\n"


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["http://h/"], 2, "must begin with ws://"),
        (["ws://h/", "--header", "X"], 2, "NAME: VALUE"),
        (["ws://h/", "--subprotocol", "a b"], 2, "not a token"),
        (["ws://h/", "--wait", "-1"], 2, "--wait"),
        (["ws://h/", "--timeout", "x"], 2, "--timeout: must be 0 or more seconds, or inf, not 'x'"),
        (["ws://h/", "--timeout", "nan"], 2, "must be 0 or more seconds, or inf, not 'nan'"),
        (["wss://h/", "--ca", "/nothing"], 2, "--ca /nothing: No such file"),
        (
            ["wss://h/", "--ca", os.devnull],
            2,
            f"--ca {os.devnull}: not a PEM file with certificates",
        ),
        (["ws://h/", "--proxy", "ftp://p"], 2, "proxy must be"),
        (["ws+unix:///nothing"], 1, "cannot connect to /nothing: No such file"),
    ],
)
def test_what_cannot_be_opened_is_one_line(call, arguments, code, match):
    found, output, errors = call(*arguments)
    assert (found, output) == (code, b"")
    assert match in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_refusal_is_shown_whole(url, call):
    code, _, errors = call(f"{url}/echo", "--origin", "https://elsewhere.example")
    assert code == 1
    assert errors.startswith(
        f"greenws connect: {url} responded with status 403: The origin 'https:"
    )
    assert "on the WebSocketHandler or in the server's Config." in errors.splitlines()[0]


def test_a_reason_does_not_control_the_terminal(call):
    with raw_server(closing) as server:
        code, output, errors = call(server.url, "--wait", "inf")
    assert (code, output) == (1, b"")
    assert errors == "greenws connect: connection closed: 1008 (policy violation) \\x1b]0;owned\n"


def closing(connection):
    connection.accept()
    connection.send(close_frame(1008, b"\x1b]0;owned", mask=None))
    connection.hold()


def test_a_server_that_compresses_with_takeover_as_tornado(call):
    def compressing(connection):
        connection.accept("Sec-WebSocket-Extensions: permessage-deflate")
        connection.send(frame(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4, mask=None))
        connection.send(frame(TEXT, b"\xf2\x00\x11\x00\x00", rsv=4, mask=None))
        connection.send(close_frame(1000, mask=None))
        connection.hold()

    with raw_server(compressing) as server:
        assert call(server.url, "--wait", "inf") == (0, b"Hello\nHello\n", "")


def test_a_server_of_tls(serve, certificates, call, tmp_path):
    served, trusting = certificates
    routes = Routes()
    routes.websocket("/")(lambda request, socket: socket.send("hello"))
    url = f"wss://127.0.0.1:{serve(routes, ssl_context=served).server_port}/"
    code, output, errors = call(url)
    assert (code, output) == (1, b"") and "--insecure" in errors
    assert call(url, "--insecure", "--wait", "inf") == (0, b"hello\n", "")
    ca = tmp_path / "ca.pem"
    ca.write_text(ssl.DER_cert_to_PEM_cert(trusting.get_ca_certs(binary_form=True)[0]))
    assert call(url, "--ca", str(ca), "--wait", "inf") == (0, b"hello\n", "")


# -- as a program


def start(*arguments, **options):
    command = [sys.executable, "-m", "greenws", "connect", "--proxy", "none", *arguments]
    return subprocess.Popen(command, **options)


def test_a_pipe_that_closes_ends_it(url):
    process = start(
        f"{url}/echo", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.wait(limit(20)) == 1
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.stdin.close()
        process.stderr.close()


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        ("<&-", 0, b""),
        (">&-", 1, b"greenws connect: cannot write the output: it is closed\n"),
        (">/dev/full", 1, b"greenws connect: cannot write the output: No space left on device\n"),
    ],
)
def test_a_closed_input_and_an_output_that_cannot_be_written(url, redirection, code, errors):
    require("full" not in redirection or os.path.exists("/dev/full"), "/dev/full")
    command = f'"$0" -m greenws connect --proxy none "$1" {redirection}'
    process = subprocess.Popen(
        ["sh", "-c", command, sys.executable, f"{url}/echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, found = process.communicate(b"one\n", timeout=limit(20))
    finally:
        process.kill()
    assert (process.returncode, found) == (code, errors)


@pytest.fixture
def terminal():
    """A program in a terminal; ``wait_for(text)`` reads its screen."""
    ours, theirs = pty.openpty()

    class Terminal:
        screen = ""

        def start(self, *arguments):
            self.process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
            os.close(theirs)

        def type(self, text):
            os.write(ours, text.encode())

        def wait_for(self, text):
            with gevent.Timeout(limit(10)):
                while text not in self.screen:
                    gevent_socket.wait_read(ours)
                    self.screen += os.read(ours, 65536).decode()

        def rest(self):
            """What is on the screen when the program has ended."""
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError, OSError):  # EIO: nobody has the terminal
                while chunk := os.read(ours, 65536):
                    self.screen += chunk.decode()
            return self.screen

    found = Terminal()
    yield found
    found.process.kill()
    os.close(ours)


def test_a_terminal_shows_messages_but_does_not_obey_them(terminal):
    text = frame(TEXT, b"\x1b]0;owned\x07\tok\n", mask=None)
    binary = frame(BINARY, b"\x00\xff", mask=None)

    def serve(connection):
        connection.accept("Sec-WebSocket-Protocol: chat")
        assert connection.read_client_frame() == (True, TEXT, b"hello")
        connection.send(text + binary)
        connection.read_client_frame()  # Close
        connection.send(close_frame(mask=None))
        connection.hold()

    with raw_server(serve) as server:
        terminal.start(server.url, "-s", "chat")
        terminal.wait_for("connected, subprotocol chat; Ctrl-D closes")
        terminal.type("hello\n")
        terminal.wait_for("< \\x1b]0;owned\\x07\tok")
        terminal.wait_for("< [2 bytes: 00 ff]")
        terminal.type("\x04")
        terminal.wait_for("closed: 1000")
        assert terminal.process.wait(limit(20)) == 0
    assert "> >" not in terminal.rest()
    assert terminal.screen.endswith("connection closed: 1000 (normal)\r\n")


def test_ctrl_c_ends_it(url, terminal):
    terminal.start(f"{url}/echo")
    terminal.wait_for("connected")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(limit(20)) == 130
    assert "KeyboardInterrupt" not in terminal.rest()
