"""Connections: several addresses, TLS, Unix sockets."""

from __future__ import annotations

import ssl

import gevent
import pytest
from gevent import socket

import greenws
from greenws import Routes
from greenws.client import dialing

from ..support.limits import limit
from ..support.raw_server import raw_server


def connect(url, **options):
    return greenws.connect(url, open_timeout=limit(), proxy=None, **options)


@pytest.fixture
def names(monkeypatch):
    """``names[host] = [address, ...]``: what the resolver answers."""
    known: dict[str, list[str]] = {}

    def resolve(host, port, *args):
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
            for address in known[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def test_addresses_of_both_families_take_turns(names):
    names["h"] = ["::1", "::2", "::3", "127.0.0.1"]
    found = [each[4][0] for each in dialing._resolve("h", 1)]
    assert found == ["::1", "127.0.0.1", "::2", "::3"]


def test_the_first_address_that_answers_is_taken(names):
    with raw_server(lambda connection: connection.hold()) as server:
        names["h"] = ["127.0.0.2", "127.0.0.1", "127.0.0.3"]  # nobody listens at the others
        sock = dialing.dial("h", server.port)
        assert sock.getpeername()[0] == "127.0.0.1"
        sock.close()


def bind_twice():
    """Sockets of two addresses, with a port that is free at both."""
    while True:
        sockets = socket.socket(), socket.socket()
        sockets[0].bind(("127.0.0.2", 0))
        port = sockets[0].getsockname()[1]
        try:
            sockets[1].bind(("127.0.0.1", port))
        except OSError:  # somebody has it there
            for sock in sockets:
                sock.close()
        else:
            return *sockets, port


def test_an_address_that_does_not_answer_holds_the_next_one_up_for_a_moment(names, monkeypatch):
    monkeypatch.setattr(dialing, "_STAGGER", 0.01)
    listener, second, port = bind_twice()
    listener.listen(0)
    full = [socket.socket() for _ in range(4)]  # its queue is full: it drops what else comes
    for sock in full:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.2", port))
    second.listen()
    try:
        names["h"] = ["127.0.0.2", "127.0.0.1"]
        sock = dialing.dial("h", port)
        assert sock.getpeername()[0] == "127.0.0.1"
        sock.close()
    finally:
        for each in (*full, listener, second):
            each.close()


def test_nobody_at_any_address_is_one_error_that_names_them_all(names):
    *unused, port = bind_twice()
    names["h"] = ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(ConnectionRefusedError) as caught:
        dialing.dial("h", port)
    assert "h (127.0.0.1)" in str(caught.value) and "h (127.0.0.2)" in str(caught.value)
    for sock in unused:
        sock.close()


def test_an_unknown_name_is_an_oserror():
    with pytest.raises(socket.gaierror, match=r"cannot resolve nobody\.invalid"):
        connect("ws://nobody.invalid/")


def test_a_killed_attempt_leaves_no_socket():
    with raw_server(lambda connection: connection.hold()) as server:
        opening = gevent.spawn(connect, server.url)
        gevent.sleep(0.01)
        opening.kill()
        # The watch over what a test leaves behind finds the socket otherwise.


# -- IPv6 and Unix sockets


def test_a_server_of_ipv6(serve):
    with raw_server(lambda connection: connection.refuse("404 No"), family=socket.AF_INET6) as raw:
        with pytest.raises(greenws.HandshakeError, match=rf"\[::1\]:{raw.port} .*404"):
            connect(f"ws://[::1]:{raw.port}/")


def test_a_server_at_a_unix_socket(tmp_path):
    routes = Routes()

    @routes.websocket("/chat")
    def chat(request, socket):
        socket.send(f"{request.host} {request.query_string.decode()}")

    path = str(tmp_path / "a b.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = greenws.WebSocketServer(listener, routes, log=None)
    server.start()
    try:
        for url in (
            f"ws+unix://{path.replace(' ', '%20')}:/chat?q",
            f"ws+unix://{path.replace('/', '%2F').replace(' ', '%20')}/chat?q",
        ):
            with connect(url) as client:
                assert client.receive(limit()) == "localhost q"
                assert client.remote_address == path
        with pytest.raises(FileNotFoundError, match="nothing"):
            connect("ws+unix:///nothing")
    finally:
        server.stop(timeout=2)


# -- TLS


@pytest.fixture
def tls(serve, certificates):
    served, trusting = certificates
    routes = Routes()

    @routes.websocket("/")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    return serve(routes, ssl_context=served), trusting


def test_a_server_of_tls(tls):
    server, trusting = tls
    with connect(f"wss://127.0.0.1:{server.server_port}/", ssl_context=trusting) as client:
        for size in (1, 1000, 20_000, 500_000):
            client.send(b"x" * size)
            assert client.receive(limit()) == b"x" * size
        assert client.ping(limit()) > 0
    assert client.close_code == 1000


def test_a_context_of_pythons_own_is_as_good(tls, tmp_path):
    server, trusting = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert type(context) is not type(trusting), "the program is patched"
    context.load_verify_locations(
        cadata=b"".join(ca for ca in trusting.get_ca_certs(binary_form=True))
    )
    with connect(f"wss://127.0.0.1:{server.server_port}/", ssl_context=context) as client:
        client.send("x" * 100_000)
        assert client.receive(limit()) == "x" * 100_000


def test_a_certificate_that_nobody_trusts_is_an_error(tls):
    server, trusting = tls
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(f"wss://127.0.0.1:{server.server_port}/")


def test_what_the_environment_trusts_is_trusted(tls, tmp_path, monkeypatch):
    server, trusting = tls
    pem = tmp_path / "ca.pem"
    ca = trusting.get_ca_certs(binary_form=True)[0]
    pem.write_text(ssl.DER_cert_to_PEM_cert(ca))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    connect(f"wss://127.0.0.1:{server.server_port}/").close()


def test_a_certificate_of_another_host_is_an_error(tls, names):
    server, trusting = tls
    names["other.example"] = ["127.0.0.1"]
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.example"):
        connect(f"wss://other.example:{server.server_port}/", ssl_context=trusting)


def test_the_name_of_the_host_is_sent(certificates, names):
    served, trusting = certificates
    asked = []
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.sni_callback = lambda sock, name, context: asked.append(name)
    names["name.example"] = names["name.example."] = ["127.0.0.1"]

    def serve(connection):
        with pytest.raises(OSError):
            context = served
            context.wrap_socket(connection.sock, server_side=True)

    def shake(connection):
        sock = connection.sock
        sock.settimeout(limit())
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = served.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(sock.recv(65536))
        with pytest.raises(ssl.SSLError):
            session.do_handshake()  # it has no certificate
        sock.sendall(outgoing.read())

    with raw_server(shake) as server:
        for host in "name.example", "name.example.":
            with pytest.raises(OSError):
                connect(f"wss://{host}:{server.port}/", ssl_context=trusting)
    assert asked == ["name.example", "name.example"]


def test_a_server_without_tls_is_an_oserror():
    with raw_server(lambda connection: connection.send(b"HTTP/1.1 400 Bad\r\n\r\n")) as server:
        with pytest.raises(
            OSError, match="no TLS connection to 127.0.0.1: .*does not speak TLS on this port"
        ):
            connect(server.url.replace("ws://", "wss://"))


def test_a_server_that_resets_the_connection_in_tls_is_named():
    with raw_server(lambda connection: connection.sock.recv(1)) as server:
        with pytest.raises(ConnectionResetError, match="no TLS connection to 127.0.0.1: .* reset"):
            connect(server.url.replace("ws://", "wss://"))


def test_a_server_that_is_silent_in_tls_is_a_timeout():
    with raw_server(lambda connection: connection.hold()) as server:
        with pytest.raises(TimeoutError, match="open_timeout"):
            greenws.connect(server.url.replace("ws:", "wss:"), open_timeout=0.05, proxy=None)
