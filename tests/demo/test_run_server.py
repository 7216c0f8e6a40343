"""run_server.py as a process: starting, stopping, its pages and its echo."""

from __future__ import annotations

import json
import logging
import re
import signal
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trustme
from werkzeug.test import Client

from greenws import testing
from run_server import make_routes

from ..support.demo import (
    ClientFactory,
    Demo,
    closed_with,
    connect,
    running,
)
from ..support.limits import again_after_standstill, limit, pace


def test_it_prints_one_line_with_its_address(demo: Demo) -> None:
    line = demo.wait_for(demo.stdout, ".*").group()
    address = r"http://127\.0\.0\.1:[1-9]\d*/"
    assert re.fullmatch(rf"greenws demo on {address}  \(press Ctrl-C to stop\)", line)
    assert demo.stop() == 0
    assert demo.stdout == [line]


def test_the_pages_are_found_from_any_directory(tmp_path: Path) -> None:
    with running("--port", "0", cwd=tmp_path) as demo:
        with urllib.request.urlopen(demo.url + "/", timeout=limit(20)) as response:
            assert response.headers.get_content_type() == "text/html"
            page = response.read().decode()
        files = re.findall(r'(?:href|src)="([^"#]+)"', page)
        assert {"style.css", "chat.js", "echo.js", "favicon.svg"} <= set(files)
        for name in files:
            with urllib.request.urlopen(f"{demo.url}/{name}", timeout=limit(20)) as response:
                assert response.status == 200
                if name.endswith(".js"):
                    assert response.headers.get_content_type() == "text/javascript"
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{demo.url}/run_server.py", timeout=limit(20))
        assert refusal.value.code == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_the_sessions_and_ends_it_cleanly(
    number: signal.Signals, demo: Demo, client: ClientFactory
) -> None:
    echo, chat = client("/echo", "echo"), client("/chat", "chat")
    echo.send("before")
    assert echo.recv(timeout=limit(20)) == "before"
    chat.send(json.dumps({"type": "join", "name": "Ada"}))
    assert json.loads(chat.recv(timeout=limit(20)))["type"] == "welcome"

    demo.process.send_signal(number)

    assert closed_with(echo) == 1001
    assert closed_with(chat) == 1001
    assert demo.exit_code() == 0
    assert "Traceback" not in "\n".join(demo.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@again_after_standstill(1.0)
def test_a_signal_without_sessions_ends_it_at_once(number: signal.Signals) -> None:
    with running("--port", "0") as demo:
        assert demo.url
        started = time.monotonic()
        assert demo.stop(number) == 0
        assert time.monotonic() - started < pace()
    assert "Traceback" not in "\n".join(demo.stderr)


def test_tls_serves_https_and_wss(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(certfile, append=True)
    certificate.private_key_pem.write_to_path(keyfile)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # No tickets after the handshake: see the fixture tls of tests/test_clients.py.
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    arguments = ("--port", "0", "--certfile", str(certfile), "--keyfile", str(keyfile))
    with running(*arguments) as demo:
        assert demo.url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(demo.url + "/", timeout=limit(20), context=context) as response:
            assert b"greenws" in response.read()
        with connect(demo.ws_url + "/echo", "echo", ssl=context) as connection:
            connection.send("over TLS")
            assert connection.recv(timeout=limit(20)) == "over TLS"
            demo.process.send_signal(signal.SIGTERM)
            assert closed_with(connection) == 1001
        assert demo.exit_code() == 0
        assert "Traceback" not in "\n".join(demo.stderr)


def test_sighup_reads_the_certificate_again(tmp_path: Path) -> None:
    authority = trustme.CA()
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> None:
        certificate = authority.issue_cert("127.0.0.1")
        certfile.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(keyfile)

    renew()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    arguments = ("--port", "0", "--certfile", str(certfile), "--keyfile", str(keyfile))
    with running(*arguments) as demo:
        with connect(demo.ws_url + "/echo", "echo", ssl=context) as before:
            renew()
            demo.process.send_signal(signal.SIGHUP)
            demo.wait_for(demo.stderr, "reloaded the certificate from .*cert.pem")
            with connect(demo.ws_url + "/echo", "echo", ssl=context) as after:
                serials = [
                    connection.socket.getpeercert()["serialNumber"]
                    for connection in (before, after)
                ]
            before.send("still here")
            assert before.recv(timeout=limit(20)) == "still here"
            keyfile.write_text("")
            demo.process.send_signal(signal.SIGHUP)
            demo.wait_for(demo.stderr, "the certificate was not reloaded: .*key.pem")
        assert demo.stop() == 0
    assert serials[0] != serials[1]


def test_metrics_without_prometheus_client_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('no client')")
    with running("--port", "0", PYTHONPATH=str(tmp_path)) as demo:
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{demo.url}/metrics", timeout=limit(20))
    assert refusal.value.code == 501
    assert b"no client; pip install prometheus-client" in refusal.value.read()


# -- in the process of the tests


@pytest.fixture
def echo(websocket: Any, caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "greenws.demo")
    return websocket(make_routes(), "/echo", subprotocols=["echo"], timeout=limit(20))


def test_echo_sends_back_what_it_reads_and_logs_it(echo: Any, caplog: Any) -> None:
    assert echo.subprotocol == "echo"
    for text in ("hello", "", "gr\u00fc\u00df \U0001f331", "x" * 70_000):
        echo.send(text)
        assert echo.receive() == text
    assert "Read msg: 'hello' op: TEXT fin: True" in caplog.messages


def test_echo_keeps_the_fragments(echo: Any, caplog: Any) -> None:
    for text in ("one ", "two "):
        echo.send_string_message(text, final=False)
    echo.send_string_message("three")
    assert [echo.read_string_message().data for _ in range(3)] == ["one ", "two ", "three"]
    assert "Read msg: 'one ' op: TEXT fin: False" in caplog.messages
    assert "Read msg: 'three' op: CONTINUATION fin: True" in caplog.messages


def test_logged_text_is_escaped_and_cut(echo: Any, caplog: Any) -> None:
    echo.send("one\r\nERROR forged: line\x1b[31m")
    echo.send("y" * 1000)
    assert [echo.receive(), echo.receive()][1] == "y" * 1000
    assert caplog.messages == [
        r"Read msg: 'one\r\nERROR forged: line\x1b[31m' op: TEXT fin: True",
        f"Read msg: '{'y' * 200}'... op: TEXT fin: True",
    ]


@pytest.mark.parametrize("path", ["/echo", "/chat"])
def test_a_client_without_the_subprotocol_is_refused(path: str) -> None:
    with pytest.raises(testing.Refused) as refusal:
        testing.connect(make_routes(), path, subprotocols=["other"])
    assert refusal.value.status_code == 400


def test_the_page_of_the_server_is_there() -> None:
    response = Client(make_routes()).get("/server")
    assert response.mimetype == "text/html"
    assert "server.js" in response.text
