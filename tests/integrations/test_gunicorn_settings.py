"""gunicorn's settings under our worker: each counts, or is refused by its name."""

from __future__ import annotations

import contextlib
import socket as native
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent.socket
import pytest
from gunicorn.config import Config as GunicornConfig

from greenws import Config, Routes
from greenws.exceptions import RequestError
from greenws.http.head import parse_head
from greenws.integrations import gunicorn_settings
from greenws.integrations.gunicorn import Worker, _WorkerServer
from greenws.integrations.gunicorn_settings import (
    Forwarding,
    config_of,
    read_proxy_header,
    refused,
    trust_of,
)
from greenws.server import opening

from ..support.limits import again_after_standstill, limit, pace, wait_until
from ..support.processes import Process
from ..support.wire import TEXT, Peer, frame


def settings(**values: Any) -> GunicornConfig:
    cfg = GunicornConfig()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


class TestConfig:
    def test_gunicorns_limits_become_options(self):
        cfg = settings(
            keepalive=7,
            limit_request_line=1000,
            limit_request_fields=50,
            limit_request_field_size=60_000,
        )
        config = config_of(cfg, Config(max_message_size=5))
        assert config.keep_alive_timeout == 7
        assert config.max_request_line == 1000
        assert config.max_headers == 50
        assert config.max_header_size == 120_000
        assert config.max_message_size == 5

    def test_more_connections_than_greenws_allows_by_itself(self):
        assert config_of(settings(), Config()).max_connections == 10_000
        many = settings(worker_connections=20_000)
        assert config_of(many, Config()).max_connections == 20_000
        assert config_of(many, Config(max_connections=5)).max_connections == 5

    def test_the_largest_message(self):
        assert config_of(settings(), Config()).max_message_size == Config.max_message_size
        cfg = settings()
        if "websocket_max_message_size" not in cfg.settings:
            return  # gunicorn before 26.3
        for size, expected in ((5000, 5000), (0, None)):
            cfg.set("websocket_max_message_size", size)
            assert config_of(cfg, Config()).max_message_size == expected
            assert config_of(cfg, Config(max_message_size=70)).max_message_size == 70

    def test_zero_is_no_limit(self):
        cfg = settings(limit_request_line=0, limit_request_field_size=0, keepalive=0)
        config = config_of(cfg, Config())
        assert (config.max_request_line, config.max_header_size) == (None, None)
        assert config.keep_alive_timeout < 0.01

    def test_a_config_of_greenws_wins(self):
        cfg = settings(keepalive=7, limit_request_line=1000)
        config = config_of(cfg, Config(keep_alive_timeout=5, max_request_line=2000))
        assert (config.keep_alive_timeout, config.max_request_line) == (5, 2000)


class TestForwarding:
    @staticmethod
    def apply(headers: str, address: Any = ("10.1.2.3", 5), **values: Any) -> dict[str, Any]:
        raw = f"GET /a/b HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode("latin-1")
        head = parse_head(raw, Config())
        environ: dict[str, Any] = {"wsgi.url_scheme": "http"}
        head.add_to(environ)
        forwarding = Forwarding(settings(**values))
        leaves, before = forwarding.leaves_unchanged(raw, address), environ.copy()
        try:
            forwarding(environ, address, head)
        except RequestError:
            assert not leaves
            raise
        if leaves:
            assert environ == {**before, "RAW_URI": head.target}
        return environ

    @pytest.mark.parametrize(
        "headers, leaves",
        [
            ("Upgrade: websocket\r\nOrigin: http://x\r\n", True),
            ("x-forwarded-proto: http\r\n", False),
            ("Script_Name: /a\r\n", False),
            (f"Cookie: {'a' * 9000}\r\n", False),
        ],
    )
    def test_a_request_that_it_leaves_alone_is_known_by_its_head(self, headers, leaves):
        raw = f"GET /a/b HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode("latin-1")
        assert Forwarding(settings()).leaves_unchanged(raw, ("10.1.2.3", 5)) is leaves

    def test_a_scheme_header_is_set_with_an_underscore_or_a_hyphen(self):
        names = settings(secure_scheme_headers={"X_FORWARDED_PROTO": "https"})
        raw = b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\n\r\n"
        assert not Forwarding(names).leaves_unchanged(raw, ("10.1.2.3", 5))

    def test_a_handshake_that_it_leaves_alone_needs_no_environ(self, serve, monkeypatch):
        made = []
        monkeypatch.setattr(opening, "make_environ", lambda *args: made.append(args))
        routes = Routes()

        @routes.websocket("/")
        def session(request, socket):
            socket.send("a")

        server = serve(routes)
        server._adapt = Forwarding(settings())
        with Peer.open(server.address) as peer:
            assert peer.read_frame() == (True, TEXT, b"a")
            assert peer.read_close(answer=True)[0] == 1000
        assert not made

    @pytest.mark.parametrize(
        "allowed, address, scheme",
        [
            ("10.1.2.3", ("10.1.2.3", 5), "https"),
            ("10.0.0.0/8", ("10.1.2.3", 5), "https"),
            ("*", ("192.0.2.1", 5), "https"),
            ("::1", ("::1", 5, 0, 0), "https"),
            ("127.0.0.1", "", "https"),  # a unix socket
            ("127.0.0.1", ("10.1.2.3", 5), "http"),
            ("10.1.2.3", ("10.1.2.33", 5), "http"),
        ],
    )
    def test_the_scheme_is_that_of_a_trusted_proxy(self, allowed, address, scheme):
        environ = self.apply("X-Forwarded-Proto: https\r\n", address, forwarded_allow_ips=allowed)
        assert environ["wsgi.url_scheme"] == scheme

    def test_secure_scheme_headers(self):
        options = {"forwarded_allow_ips": "*", "secure_scheme_headers": {"X-TLS": "yes"}}
        assert self.apply("X-Tls: yes\r\n", **options)["wsgi.url_scheme"] == "https"
        assert self.apply("X-Tls: no\r\n", **options)["wsgi.url_scheme"] == "http"
        headers = "X-Forwarded-Proto: https\r\n"
        assert self.apply(headers, **options)["wsgi.url_scheme"] == "http"

    def test_headers_that_contradict_each_other_are_400(self):
        with pytest.raises(RequestError) as caught:
            self.apply(
                "X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n", forwarded_allow_ips="*"
            )
        assert caught.value.status == 400

    def test_script_name(self, monkeypatch):
        environ = self.apply("SCRIPT_NAME: /a\r\n", forwarded_allow_ips="*")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/a", "/b")
        assert self.apply("SCRIPT_NAME: /a\r\n")["SCRIPT_NAME"] == ""
        with pytest.raises(RequestError, match="SCRIPT_NAME"):
            self.apply("SCRIPT_NAME: /c\r\n", forwarded_allow_ips="*")
        monkeypatch.setenv("SCRIPT_NAME", "/a")
        assert self.apply("")["PATH_INFO"] == "/b"

    def test_header_map_refuse(self):
        assert "HTTP_X_A" not in self.apply("X_A: b\r\n")
        with pytest.raises(RequestError, match="header_map"):
            self.apply("X_A: b\r\n", header_map="refuse")

    def test_limit_request_field_size(self):
        self.apply(f"X: {'a' * 95}\r\n", limit_request_field_size=100)
        with pytest.raises(RequestError) as caught:
            self.apply(f"X: {'a' * 96}\r\n", limit_request_field_size=100)
        assert caught.value.status == 431


V2 = b"\r\n\r\n\0\r\nQUIT\n"
V2_V4 = V2 + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 7, 10, 0, 0, 1]) + b"\x12\x67\x00\x50"
V2_V6 = V2 + b"\x21\x21\0\x24" + bytes(15) + b"\x07" + bytes(15) + b"\x01" + b"\x12\x67\x00\x50"


class TestProxyProtocol:
    @staticmethod
    def read(
        *pieces: bytes, mode: str = "auto", allowed: str = "127.0.0.1", timeout: float = 60
    ) -> tuple[Any, bytes]:
        ours, theirs = gevent.socket.socketpair()
        with ours, theirs:

            def send() -> None:
                for piece in pieces:
                    theirs.sendall(piece)
                    gevent.sleep(0.005)

            sending = gevent.spawn(send)
            try:
                address = read_proxy_header(
                    ours, ("127.0.0.1", 9), mode, trust_of([allowed]), timeout
                )
                sending.join()
                theirs.shutdown(native.SHUT_WR)
                return address, ours.recv(1000)
            finally:
                sending.kill()

    @pytest.mark.parametrize(
        "header, client, proxy",
        [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n", ("192.0.2.7", 4711), "10.0.0.1"),
            (b"PROXY TCP6 ::7 ::1 4711 80\r\n", ("::7", 4711), "::1"),
            (V2_V4, ("192.0.2.7", 4711), "10.0.0.1"),
            (V2_V6, ("::7", 4711), "::1"),
            (V2 + b"\x21\x11\0\x0f" + V2_V4[16:] + b"tlv", ("192.0.2.7", 4711), "10.0.0.1"),
        ],
    )
    def test_the_client_is_whom_the_header_names(self, header, client, proxy):
        for pieces in ([header + b"GET"], [header[:9], header[9:] + b"GET"]):
            address, rest = self.read(*pieces)
            assert (tuple(address), address.peer, rest) == (client, ("127.0.0.1", 9), b"GET")
            assert address.environ["PROXY_ADDR"] == proxy

    @pytest.mark.parametrize(
        "data, mode",
        [
            (b"GET / HTTP/1.1\r\n", "auto"),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n", "v2"),
            (V2_V4, "v1"),
        ],
    )
    def test_what_is_no_header_is_left(self, data, mode):
        assert self.read(data, mode=mode) == (("127.0.0.1", 9), data)

    @pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2 + b"\x20\x00\0\0"])
    def test_a_proxy_that_does_not_know(self, header):
        assert self.read(header + b"GET") == (("127.0.0.1", 9), b"GET")

    @pytest.mark.parametrize(
        "header",
        [
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
            b"PROXY TCP4 ::7 ::1 4711 80\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 65536\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 80\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 4711 80\r\n",
            b"PROXY TCP4 x y 4711 80\r\n",
            b"PROXY " + b"x" * 200,
            V2 + b"\x31\x11" + V2_V4[14:],
            V2 + b"\x21\x31\0\x00",
            V2 + b"\x21\x11\0\x04abcd",
        ],
    )
    def test_a_malformed_header(self, header):
        with pytest.raises(ValueError):
            self.read(header)

    def test_a_header_of_a_stranger(self):
        with pytest.raises(ValueError, match="proxy_allow_ips"):
            self.read(V2_V4, allowed="10.0.0.1")

    def test_a_header_that_does_not_end(self):
        with pytest.raises(TimeoutError, match="no whole PROXY header"):
            self.read(b"PROXY TCP4", timeout=0.02)


class TestRefusals:
    def test_the_defaults_are_fine(self):
        assert refused(settings()) == []

    @pytest.mark.parametrize(
        "name, value",
        [
            ("permit_obsolete_folding", True),
            ("casefold_http_method", True),
            ("strip_header_spaces", True),
            ("permit_unconventional_http_method", True),
            ("permit_unconventional_http_version", True),
            ("header_map", "dangerous"),
            ("pre_request", lambda worker, request: None),
            ("post_request", lambda worker, request, environ, response: None),
        ],
    )
    def test_what_cannot_be_honoured_is_named(self, name, value):
        (problem,) = refused(settings(**{name: value}))
        assert problem.startswith(f"{name} ")

    @pytest.mark.parametrize(
        "names, text",
        [
            ({"my_config": Config()}, "call it greenws_config"),
            ({"greenws_config": {}}, "greenws_config must be"),
            ({"trusted_proxies": "1"}, "trusted_proxies must be"),
            ({"trusted_proxies": -1}, "trusted_proxies must be"),
        ],
    )
    def test_mistakes_in_the_configuration_file(self, monkeypatch, names, text):
        module = type(native)("__config__")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, "__config__", module)
        with pytest.raises(TypeError, match=text):
            gunicorn_settings.conf_of(settings())


@contextlib.contextmanager
def gunicorn(folder: Path, conf: str, app: str = "told_app:app") -> Iterator[Process]:
    (folder / "gunicorn.conf.py").write_text(
        f'bind = "127.0.0.1:0"\nworker_class = "greenws.gunicorn.Worker"\n{conf}'
    )
    with Process("-m", "gunicorn", app, cwd=folder) as process:
        yield process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    conf = """
from greenws import Config
greenws_config = Config(max_message_size=5)
trusted_proxies = 1
keepalive = 1
limit_request_line = 200
limit_request_fields = 20
limit_request_field_size = 300
proxy_protocol = "auto"
"""
    with gunicorn(tmp_path_factory.mktemp("settings"), conf) as process:
        yield process.wait_for_port()


class TestTheServer:
    """With its settings in a file, as people have them."""

    @staticmethod
    def ask(process: Process, data: bytes) -> tuple[int, str]:
        with Peer.connect(process.address) as peer:
            peer.send(data)
            response = peer.read_response()
            return response.status, response.body.decode()

    def test_config_and_trusted_proxies(self, server):
        with Peer.open(server.address, "/ws", X_Forwarded_For="192.0.2.9") as peer:
            assert peer.read_frame()[2].split()[2] == b"192.0.2.9"
            peer.send(frame(TEXT, b"123456"))
            assert peer.read_close()[0] == 1009

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_the_scheme_counts_for_the_origin(self, server, scheme):
        for origin, status in [(f"{scheme}://example.com", 101), ("https://other.com", 403)]:
            with Peer.connect(server.address) as peer:
                response = peer.shake("/ws", X_Forwarded_Proto=scheme, Origin=origin)
                assert response.status == status
                if status == 101:
                    assert peer.read_frame()[2].split()[1] == scheme.encode()

    def test_limits(self, server):
        get = "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n"
        assert self.ask(server, get.format("/" + "a" * 200, "").encode())[0] == 414
        assert self.ask(server, get.format("/", "a: b\r\n" * 20).encode())[0] == 431
        assert self.ask(server, get.format("/", f"a: {'b' * 300}\r\n").encode())[0] == 431
        assert self.ask(server, get.format("/", "a: b\r\n" * 5).encode())[0] == 200

    @again_after_standstill(0.5)
    def test_keepalive(self, server):
        with Peer.connect(server.address) as peer:
            began = time.monotonic()
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.read_response().status == 200
            assert peer.at_end()
            assert 0.9 < time.monotonic() - began < pace(3)

    def test_proxy_protocol(self, server):
        get = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for header in (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n", V2_V4):
            status, text = self.ask(server, header + get)
            assert (status, text.split()[2:]) == (200, ["192.0.2.7", "10.0.0.1"])
            with Peer.connect(server.address) as peer:
                peer.send(header)
                assert peer.shake("/ws").status == 101
                assert peer.read_frame()[2].split()[2:] == [b"192.0.2.7", b"10.0.0.1"]
        with Peer.connect(server.address) as peer:
            peer.send(b"PROXY nonsense\r\n")
            assert peer.at_end()
        server.wait_for("malformed PROXY header")


def test_max_requests_restart_the_worker(tmp_path):
    """Requests and sessions count alike; the sessions get 1001."""
    with gunicorn(tmp_path, "max_requests = 3\n") as process:
        process.wait_for_port()
        pids = []
        with Peer.open(process.address, "/ws") as peer:
            pids.append(peer.read_frame()[2].split()[0])
            for _ in range(2):
                with Peer.connect(process.address) as other:
                    other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    pids.append(other.read_response().body.split()[0])
            assert peer.read_frame() == (True, 8, b"\x03\xe9")
        process.wait_for("Autorestarting worker after current request")
        process.wait_for("Worker exiting")
        with Peer.open(process.address, "/ws") as peer:
            assert peer.read_frame()[2].split()[0] not in pids
    assert len(set(pids)) == 1


def test_a_session_of_routes_needs_no_http_handler(tmp_path):
    """As on our own server; a handler of the program's may do more."""

    class Handler(Worker.wsgi_handler):
        pass

    for kind, is_direct in ((Worker.wsgi_handler, True), (Handler, False)):
        server = _WorkerServer(("127.0.0.1", 0), Routes(), handler_class=kind)
        assert server._is_direct is is_direct
    with gunicorn(tmp_path, "") as process:
        process.wait_for_port()
        with Peer.open(process.address, "/raw/a%20b?c=%64") as peer:
            assert peer.read_frame() == (True, TEXT, b"/raw/a%20b?c=%64 a b")


def test_a_setting_that_cannot_be_honoured_ends_gunicorn_at_its_start(tmp_path):
    with gunicorn(tmp_path, "def pre_request(worker, request):\n    pass\n") as process:
        assert process.popen.wait(limit(20)) != 0
        process.wait_for(r"\[ERROR\] greenws.gunicorn.Worker: pre_request cannot be honoured")
    assert "Traceback" not in process.output


UNPROTECTED = """
import functools
from greenws import Routes
app = Routes()
def login_required(function):
    return functools.wraps(function)(lambda *args: function(*args))
@login_required
@app.websocket("/")
def session(request, socket):
    pass
"""


def test_a_decorator_that_no_session_would_meet_ends_gunicorn_at_its_start(tmp_path):
    (tmp_path / "unprotected.py").write_text(UNPROTECTED)
    arguments = ("-k", "greenws.gunicorn.Worker", "-b", "127.0.0.1:0", "unprotected:app")
    with Process("-m", "gunicorn", *arguments, cwd=tmp_path) as process:
        assert process.popen.wait(limit(20)) == 3  # the worker failed to boot
        process.wait_for(r"TypeError: @login_required is above @routes.websocket\('/'\)")


def test_a_factory_in_place_of_an_application_is_reported_when_it_is_loaded():
    """Later, gunicorn would replace the worker again and again."""

    def create_app():
        return Routes()

    worker = Worker.__new__(Worker)
    worker.app = SimpleNamespace(wsgi=lambda: create_app)
    worker.cfg = settings()
    with pytest.raises(TypeError, match=r"give what it returns: create_app\(\)"):
        worker.load_wsgi()


@pytest.fixture
def behind_haproxy(serve: Any) -> Any:
    def start(**options: Any) -> Any:
        server = serve(
            lambda environ, start_response: [], cls=_WorkerServer, config=Config(**options)
        )
        server.proxy_protocol, server.trusts_proxy = "v1", lambda address: True
        return server

    return start


def test_a_connection_counts_while_its_proxy_header_is_awaited(behind_haproxy):
    server = behind_haproxy(max_connections=1)
    with Peer.connect(server.address):
        wait_until(lambda: server.admission.open == 1)
        with Peer.connect(server.address) as other:
            assert other.read_response().status == 503
    wait_until(lambda: server.admission.open == 0)
    assert not server.admission.greenlets


def test_the_address_of_a_proxy_header_counts(behind_haproxy):
    server = behind_haproxy(max_connections_per_address=1)
    header = b"PROXY TCP4 192.0.2.%d 10.0.0.1 4711 80\r\n"
    with Peer.connect(server.address) as first, Peer.connect(server.address) as second:
        first.send(header % 7)
        wait_until(lambda: server.admission._addresses == {"192.0.2.7": 1})
        second.send(header % 7)
        assert second.read_response().status == 503
        with Peer.connect(server.address) as third:
            third.send(header % 8)
            wait_until(lambda: server.admission._addresses["192.0.2.8"] == 1)
    wait_until(lambda: server.admission.open == 0)
    assert not server.admission._addresses


def test_malformed_proxy_headers_do_not_fill_the_log(behind_haproxy, caplog):
    server = behind_haproxy()
    for _ in range(15):
        with Peer.connect(server.address) as peer:
            peer.send(b"PROXY nonsense\r\n")
            assert peer.at_end()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert all("malformed PROXY header" in line for line in lines)
    server._malformed._tokens = 1.0
    with Peer.connect(server.address) as peer:
        peer.send(b"PROXY nonsense\r\n")
        assert peer.at_end()
    assert "(and 5 more since the last such line)" in caplog.records[-1].getMessage()
