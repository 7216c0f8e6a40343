"""TLS: contexts, server names, the protocol that is agreed on, and streams that are cut off."""

from __future__ import annotations

import gc
import ssl as native_ssl
import sys

import gevent
import pytest
import trustme
from gevent import ssl

from greenws import Routes, WebSocketServer
from greenws.hub.sockets import OwnedSSLSocket
from greenws.hub.transport import has_tls_in_memory

from ..support.limits import limit, wait_until
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame

AUTHORITY = trustme.CA()


def served(name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


CODES: list[object] = []


@pytest.fixture
def routes():
    CODES.clear()
    routes = Routes()

    @routes.websocket("/ws")
    def echo(request, socket):
        try:
            for message in socket:
                socket.send(message)
        finally:
            CODES.append(socket.close_code)

    return routes


def connect(server, context, name="127.0.0.1"):
    peer = Peer.connect(server.address)
    peer.sock = context.wrap_socket(peer.sock, server_hostname=name)
    return peer


def echoes(peer):
    assert peer.shake("/ws").status == 101
    peer.send(frame(TEXT, b"x"))
    return peer.read_frame() == (True, TEXT, b"x")


def test_the_certificate_follows_the_servers_name(serve, routes, trusting):
    contexts = {name: served(name) for name in ("one.example", "two.example")}
    context = served("127.0.0.1")

    def choose(sock, name, initial):
        if name in contexts:
            sock.context = contexts[name]

    context.sni_callback = choose
    server = serve(routes, ssl_context=context)
    for name in ("one.example", "two.example", "127.0.0.1"):
        with connect(server, trusting, name) as peer:  # which checks the name
            assert echoes(peer)


def test_http_1_1_is_agreed_on(serve, routes, trusting):
    server = serve(routes, ssl_context=served("127.0.0.1"))
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with connect(server, trusting) as peer:
        assert peer.sock.selected_alpn_protocol() == "http/1.1"
        assert echoes(peer)


def test_certfile_and_keyfile(serve, routes, trusting, tmp_path):
    certificate = AUTHORITY.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    certificate.private_key_pem.write_to_path(str(key))
    server = serve(routes, certfile=str(chain), keyfile=str(key))
    trusting.set_alpn_protocols(["http/1.1"])
    with connect(server, trusting) as peer:
        assert peer.sock.selected_alpn_protocol() == "http/1.1"
        assert echoes(peer)


def write(certificate, chain, key):
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))


def serial(peer):
    return peer.sock.getpeercert()["serialNumber"]


def test_certificates_are_reloaded_while_sessions_live_on(serve, routes, trusting, tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    write(AUTHORITY.issue_cert("127.0.0.1"), chain, key)
    server = serve(routes, certfile=str(chain), keyfile=str(key))
    with connect(server, trusting) as old:
        assert echoes(old)
        write(AUTHORITY.issue_cert("127.0.0.1"), chain, key)
        with connect(server, trusting) as peer:
            assert serial(peer) == serial(old)
        server.reload_certificates()
        with connect(server, trusting) as new:
            assert serial(new) != serial(old)
            assert echoes(new)
        old.send(frame(TEXT, b"still here"))
        assert old.read_frame() == (True, TEXT, b"still here")


def test_certificates_that_cannot_be_used_leave_the_old_ones(serve, routes, trusting, tmp_path):
    chain, key, other = (tmp_path / name for name in ("chain.pem", "key.pem", "other.pem"))
    write(AUTHORITY.issue_cert("127.0.0.1"), chain, key)
    server = serve(routes, certfile=str(chain), keyfile=str(key))
    with connect(server, trusting) as peer:
        before = serial(peer)
    write(AUTHORITY.issue_cert("127.0.0.1"), chain, other)  # of another key
    with pytest.raises(native_ssl.SSLError, match=r"chain\.pem and .*key\.pem"):
        server.reload_certificates()
    key.unlink()
    with pytest.raises(FileNotFoundError, match=r"key\.pem"):
        server.reload_certificates()
    with connect(server, trusting) as peer:
        assert serial(peer) == before
        assert echoes(peer)


def test_reloading_without_a_certfile_says_what_to_do(serve, routes):
    for options in ({}, {"ssl_context": served("127.0.0.1")}):
        with pytest.raises(RuntimeError, match="certfile="):
            serve(routes, **options).reload_certificates()


def test_a_context_that_would_stop_all_greenlets_is_refused():
    context = native_ssl.SSLContext(native_ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(TypeError, match=r"must be a gevent\.ssl\.SSLContext"):
        WebSocketServer(("127.0.0.1", 0), Routes(), ssl_context=context)


def test_a_stream_without_close_notify_is_cut_off(serve, routes, trusting):
    """RFC 6455 has an end of its own, so that a truncated stream cannot pass for a whole one."""
    server = serve(routes, ssl_context=served("127.0.0.1"))
    peer = connect(server, trusting)
    assert echoes(peer)
    peer.sock.close()
    assert wait_until(lambda: CODES) == [1006]


def test_the_end_of_tls_without_a_close_is_not_a_close(serve, routes, trusting):
    server = serve(routes, ssl_context=served("127.0.0.1"))
    with connect(server, trusting) as peer:
        assert echoes(peer)
        ending = gevent.spawn(peer.sock.unwrap)
        assert wait_until(lambda: CODES) == [1006]
        ending.get(timeout=limit())


@pytest.mark.skipif(not has_tls_in_memory(), reason="Python's SSL object needs its socket")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="a caller keeps the arguments of its call")
def test_a_session_keeps_no_socket_object_around_its_tls(serve, routes, trusting):
    server = serve(routes, ssl_context=served("127.0.0.1"))
    with connect(server, trusting) as peer:
        assert echoes(peer)
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is OwnedSSLSocket]
        peer.send(close_frame())
        assert peer.read_frame()[1] == CLOSE
        assert peer.sock.recv(1) == b""
        assert wait_until(lambda: CODES) == [1000]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_that_comes_back_resumes_its_session(serve, routes, trusting, version):
    """By a ticket: the server keeps nothing."""
    server = serve(routes, ssl_context=served("127.0.0.1"))
    trusting.maximum_version = getattr(native_ssl.TLSVersion, version)
    with connect(server, trusting) as first:
        assert not first.sock.session_reused
        assert echoes(first)  # in TLS 1.3 tickets come after the handshake
        ticket = first.sock.session
        assert ticket.has_ticket
    peer = Peer.connect(server.address)
    peer.sock = trusting.wrap_socket(peer.sock, server_hostname="127.0.0.1", session=ticket)
    with peer:
        assert peer.sock.session_reused
        assert echoes(peer)


def test_the_scheme_is_wss_for_the_application(serve, trusting):
    seen = []
    routes = Routes()

    @routes.websocket("/ws")
    def session(request, socket):
        seen.append((request.scheme, request.is_secure))

    server = serve(routes, ssl_context=served("127.0.0.1"))
    with connect(server, trusting) as peer:
        assert peer.shake("/ws").status == 101
        wait_until(lambda: seen)
    assert seen == [("https", True)]


def test_a_server_that_keeps_its_sockets_has_them_while_sessions_last(serve, routes, trusting):
    kept = []

    class Keeping(WebSocketServer):
        def handle(self, sock, address):
            kept.append(sock)
            super().handle(sock, address)

    server = serve(routes, cls=Keeping, ssl_context=served("127.0.0.1"))
    with connect(server, trusting) as peer:
        assert peer.shake("/ws").status == 101
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        (sock,) = kept
        assert sock.fileno() >= 0 and sock.getpeername()[0] == "127.0.0.1"
