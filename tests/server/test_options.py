"""The options of ``WebSocketServer``: wrong ones are refused when the server is made."""

from __future__ import annotations

import inspect
import ssl
from functools import partial

import gevent.ssl
import geventwebsocket.handler
import geventwebsocket.server
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from flask import Blueprint, Flask
from gevent import pywsgi
from gunicorn.config import Config as GunicornConfig

from greenws import Config, Routes, UpgradeHandler, WebSocketHandler, WebSocketServer, options
from greenws.integrations import gunicorn_settings
from greenws.integrations.flask import Sock
from greenws.server.options import SERVER_OPTIONS

ADDRESS = ("127.0.0.1", 0)
SESSIONS = WebSocketHandler(lambda request, protocols: None)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"allowed_origins": "*"}, r"config=Config\(allowed_origins='\*'\)"),
        ({"max_message_size": 5}, r"is an option of Config.*Config\(max_message_size=5\)"),
        ({"max_mesage_size": 5}, r"did you mean config=Config\(max_message_size=5\)"),
        ({"keyfile": "key.pem"}, "keyfile needs certfile="),
        ({"workers": 4}, r"gunicorn -k greenws\.gunicorn\.Worker -w 4"),
        ({"port": 80}, "the first argument"),
        ({"certfiel": "x"}, "did you mean 'certfile'"),
        ({"trusted_proxy": 1}, "did you mean 'trusted_proxies'"),
        ({"qwertz": 1}, "no option 'qwertz'.*config=Config"),
        ({"config": {}}, "not a dict"),
        ({"config": {"ping_interval": 5}}, r"Config\(ping_interval=5\)"),
        ({"config": Config}, "must be a greenws.Config"),
        ({"config": 5}, "not 5"),
        ({"cert_reqs": ssl.CERT_REQUIRED}, "cert_reqs needs certfile"),
        ({"do_handshake_on_connect": False}, "needs certfile"),
        ({"backlog": "many"}, "backlog must be a whole number"),
        ({"spawn": "threads"}, "spawn must be a number, a Pool"),
        ({"spawn": "raw"}, "a function such as gevent.spawn"),  # of gevent before 1.1
        ({"spawn": 0}, "not 0"),
        ({"spawn": -1}, "not -1"),
        ({"spawn": True}, "not True"),
        ({"spawn": 2.5}, "not 2.5"),
        ({"handler_class": print}, "handler_class must be a class"),
        ({"handler_class": partial(UpgradeHandler)}, "must be a class.*attributes of a subclass"),
        ({"handler_class": WebSocketHandler}, "a WebSocketHandler is an application"),
        ({"handler_class": SESSIONS}, "a WebSocketHandler is an application"),
        (
            {"handler_class": geventwebsocket.handler.WebSocketHandler},
            "Leave it out, or derive yours",
        ),
        ({"handler_class": pywsgi.WSGIHandler}, "cannot open sessions"),
        ({"log": "access.log"}, "log must be a logger or an open file, not 'access.log'"),
        ({"error_log": 3}, "error_log must be a logger"),
        ({"pre_start_hook": "hook"}, "pre_start_hook must be a function"),
        ({"environ": "SCRIPT_NAME=/x"}, "environ must be a dict"),
        ({"environ": 5}, "environ must be a dict.*not 5"),
    ],
)
def test_a_wrong_option_is_a_type_error_at_once(wrong, match):
    with pytest.raises(TypeError, match=match):
        WebSocketServer(ADDRESS, Routes(), **wrong)


@pytest.mark.parametrize("backlog", [-1, 1 << 31])
def test_a_backlog_that_no_system_has_is_an_error_at_once(backlog):
    with pytest.raises(ValueError, match=f"0 or more, not {backlog}"):
        WebSocketServer(ADDRESS, Routes(), backlog=backlog)


def test_the_time_to_stop_is_a_number(serve):
    server = serve(Routes())
    for wrong in ("5", [], True):
        with pytest.raises(TypeError, match="grace must be a number of seconds or None"):
            server.stop(wrong)
    assert server.started


@pytest.mark.parametrize(
    ("address", "error", "match"),
    [
        (Routes(), TypeError, "the application is the second argument"),
        (("localhost", "8181"), TypeError, "with the port as an int"),
        (("localhost", True), TypeError, "with the port as an int"),
        (("localhost",), TypeError, "an address is"),
        ((8181, "localhost"), TypeError, "an address is"),
        (None, TypeError, "an address is"),
        (b"localhost:80", TypeError, "an address is"),
        (("localhost", 81810), ValueError, "up to 65535"),
        (-1, ValueError, "up to 65535"),
        (("[::1]", 8181), ValueError, "no brackets in an address: '::1', not"),
        ("localhost", ValueError, "'host:port', not 'localhost'"),
        ("http://localhost:8181", ValueError, "'host:port'"),
        ("/run/greenws.sock", ValueError, "for a Unix socket, give a gevent.socket"),
        ("unix:/run/greenws.sock", ValueError, "for a Unix socket"),
    ],
)
def test_what_is_no_address_is_reported_at_once(address, error, match):
    with pytest.raises(error, match=match):
        WebSocketServer(address, Routes())


@pytest.mark.parametrize("address", [0, "0", ":0", "127.0.0.1:0", ("", 0), ("::1", 0, 0, 0)])
def test_addresses_of_every_kind_are_taken(address):
    assert WebSocketServer(address, Routes())


def test_an_address_and_a_port_apart_are_reported():
    with pytest.raises(TypeError, match="the address comes first, as one argument"):
        WebSocketServer(":80", 8181)
    with pytest.raises(TypeError, match="the first argument"):
        WebSocketServer(host="localhost", port=8181)


def test_names_that_servers_have_elsewhere_lead_to_ours():
    with pytest.raises(TypeError, match="each connection has a greenlet"):
        WebSocketServer(ADDRESS, Routes(), threaded=True)
    for name in ("run", "run_forever", "listen", "serve"):
        with pytest.raises(AttributeError, match="; use .*serve_forever"):
            getattr(WebSocketServer, name)
    for name, instead in (("shutdown", "stop"), ("broadcast", "rooms"), ("route", "Routes")):
        with pytest.raises(AttributeError, match=f"; use .*{instead}"):
            getattr(WebSocketServer, name)


def produce(request, protocols):
    return None


class Asgi:
    async def __call__(self, scope, receive, send):
        pass


@pytest.mark.parametrize(
    ("application", "match"),
    [
        (None, r"needs an application: WebSocketServer\(address, app\)"),
        ("app:app", "not its name"),
        (5, "not 5"),
        (Asgi(), "ASGIMiddleware"),
        (lambda request: None, "does not fit"),
        (Flask, "not the class Flask"),
        (Flask("a").run, "the application itself, such as app and not app.run"),
        (Blueprint("a", "b"), "register the blueprint"),
        (Sock(), "the application that it was made for"),
        (ssl, "the module's application, such as ssl.app"),
        (lambda request, socket: None, r"is a session: write @routes\.websocket\(path\)"),
        (lambda websocket, path: None, "is a session"),
        (produce, r"is a producer: give WebSocketHandler\(produce\)"),
    ],
)
def test_a_wrong_application_is_a_type_error_at_once(application, match):
    with pytest.raises(TypeError, match=match):
        WebSocketServer(ADDRESS, application)
    with pytest.raises(TypeError, match="needs an application"):
        WebSocketServer(ADDRESS)


def test_a_subclass_may_bring_its_application():
    class Server(WebSocketServer):
        application = Routes()

    assert type(Server(ADDRESS).application) is Routes


def test_the_options_are_those_of_gevent_and_its_wrap_socket():
    parameters = set(inspect.signature(pywsgi.WSGIServer.__init__).parameters)
    ours = {"self", "listener", "application", "ssl_args"}
    assert parameters - ours <= SERVER_OPTIONS
    tls = set(inspect.signature(gevent.ssl.wrap_socket).parameters) - {"sock"}
    rest = SERVER_OPTIONS - parameters - tls
    assert tls <= SERVER_OPTIONS
    assert rest == {"debug", "pre_start_hook", "ssl_context"}
    source = inspect.getsource(geventwebsocket.server.WebSocketServer.__init__)
    assert source.count("kwargs.pop(") == 2 and "'debug'" in source and "'pre_start_hook'" in source


def test_the_typed_options_are_the_known_ones():
    assert set(options.ServerOptions.__annotations__) == SERVER_OPTIONS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path(folder / "other.pem")
    return {"certfile": folder / "cert.pem", "keyfile": folder / "key.pem"}


def test_options_that_are_none_count_as_not_given():
    server = WebSocketServer(ADDRESS, Routes(), certfile=None, keyfile=None, ssl_context=None)
    assert not server.ssl_enabled


def test_a_file_that_is_not_there_is_named(files):
    with pytest.raises(FileNotFoundError, match="nowhere/cert.pem"):
        WebSocketServer(ADDRESS, Routes(), certfile="nowhere/cert.pem")
    with pytest.raises(FileNotFoundError, match="nowhere/key.pem"):
        WebSocketServer(ADDRESS, Routes(), **{**files, "keyfile": "nowhere/key.pem"})


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"certfile": 0}, TypeError, "certfile must be the path of a file, not 0"),
        ({"keyfile": 0}, TypeError, "keyfile must be the path of a file, not 0"),
        ({"ca_certs": 0}, TypeError, "ca_certs must be the path of a file, not 0"),
        ({"ca_certs": "nowhere/ca.pem"}, FileNotFoundError, "nowhere/ca.pem"),
        ({"ca_certs": __file__}, ssl.SSLError, "cannot use ca_certs .*test_options.py"),
        ({"ciphers": "NONE-SUCH"}, ValueError, "names that OpenSSL knows, not 'NONE-SUCH'"),
        ({"cert_reqs": "required"}, TypeError, "such as ssl.CERT_REQUIRED, not 'required'"),
        ({"cert_reqs": ssl.CERT_REQUIRED}, TypeError, "needs ca_certs="),
        ({"ssl_version": "TLSv1_2"}, TypeError, "ssl_version must be a constant"),
    ],
)
def test_options_of_tls_that_are_wrong_are_reported(files, wrong, error, match):
    with pytest.raises(error, match=match):
        WebSocketServer(ADDRESS, Routes(), **{**files, **wrong})


def test_contexts_as_flask_takes_them_are_reported():
    for context in ("adhoc", ("cert.pem", "key.pem")):
        with pytest.raises(TypeError, match="write certfile='cert.pem', keyfile='key.pem'"):
            WebSocketServer(ADDRESS, Routes(), ssl_context=context)


def test_a_key_of_another_certificate_is_reported(files):
    other = files["keyfile"].with_name("other.pem")
    with pytest.raises(ssl.SSLError, match="cert.pem and .*other.pem"):
        WebSocketServer(ADDRESS, Routes(), **{**files, "keyfile": other})


def test_an_encrypted_key_is_reported_and_nobody_is_asked_for_its_password(files, monkeypatch):
    key = serialization.load_pem_private_key(files["keyfile"].read_bytes(), None)
    encrypted = files["keyfile"].with_name("encrypted.pem")
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ssl.SSLError, match="cert.pem and .*encrypted.pem: the key is encrypted"):
        WebSocketServer(ADDRESS, Routes(), **{**files, "keyfile": encrypted})
    both = encrypted.with_name("both.pem")
    both.write_bytes(files["certfile"].read_bytes() + encrypted.read_bytes())
    monkeypatch.setattr(gunicorn_settings, "ssl_context", lambda cfg: None)  # gunicorn's asks
    cfg = GunicornConfig()
    cfg.set("certfile", str(both))
    for load in (
        lambda: WebSocketServer(ADDRESS, Routes(), certfile=both),
        lambda: gunicorn_settings.tls_context_of(cfg),
    ):
        with pytest.raises(ssl.SSLError, match="both.pem: the key is encrypted") as caught:
            load()
        assert "without keyfile" not in str(caught.value)


def test_a_certificate_without_its_key_is_reported(files):
    with pytest.raises(ssl.SSLError, match="without keyfile, it must hold the key, too"):
        WebSocketServer(ADDRESS, Routes(), certfile=files["certfile"])


def test_the_options_of_tls_reach_the_context(files):
    ca = files["keyfile"].with_name("ca.pem")
    server = WebSocketServer(
        ADDRESS,
        Routes(),
        **files,
        ca_certs=ca,
        cert_reqs=ssl.CERT_REQUIRED,
        ciphers="ECDHE-RSA-AES128-GCM-SHA256",
    )
    context = server._tls_context
    assert context.verify_mode == ssl.CERT_REQUIRED and len(context.get_ca_certs()) == 1
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert "ECDHE-RSA-AES128-GCM-SHA256" in names and "ECDHE-RSA-AES256-GCM-SHA384" not in names
    assert server.ssl_args == {"server_side": True}


def test_a_context_and_a_certificate_do_not_go_together(files):
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(TypeError, match="either ssl_context or certfile, keyfile"):
        WebSocketServer(ADDRESS, Routes(), **files, ssl_context=context)
