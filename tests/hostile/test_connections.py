"""Hostile connections: an unfinished TLS handshake, and a process that is out of descriptors."""

from __future__ import annotations

import contextlib
import errno
import logging
import os

import gevent
import pytest
from gevent import socket

import greenws

from ..support.limits import again_after_standstill, pace, wait_until
from ..support.target import make_routes
from ..support.wire import Peer


@pytest.fixture
def tls_server(serve, certificates):
    def start(**options):
        config = greenws.Config(**options)
        return serve(make_routes(), ssl_context=certificates[0], config=config)

    return start


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff"])
def test_a_client_without_tls_is_one_log_line_and_no_traceback(tls_server, hello, caplog):
    server = tls_server(handshake_timeout=0.2)
    with caplog.at_level(logging.INFO, "greenws"), Peer.connect(server.address) as peer:
        peer.send(hello)
        with contextlib.suppress(ConnectionResetError):
            while peer._fill():
                pass
        (record,) = wait_until(lambda: caplog.records)
        assert "TLS handshake" in record.getMessage() and record.exc_info is None


@again_after_standstill(0.2)
def test_tls_has_a_deadline_in_all(tls_server, caplog):
    caplog.clear()
    server = tls_server(handshake_timeout=0.1)
    with caplog.at_level(logging.INFO, "greenws"), Peer.connect(server.address) as peer:
        begin = gevent.get_hub().loop.now()

        def drip():
            try:
                for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200):
                    peer.send(bytes([byte]))
                    gevent.sleep(0.02)
            except OSError:
                pass

        dripping = gevent.spawn(drip)
        try:
            while peer._fill():
                pass
        except OSError:
            pass
        gevent.get_hub().loop.update_now()
        assert gevent.get_hub().loop.now() - begin < pace(1)
        dripping.kill()
        assert len(wait_until(lambda: caplog.records)) == 1


def test_without_descriptors_it_pauses_and_recovers_with_two_lines(
    serve, caplog, error_log, monkeypatch
):
    server = serve(make_routes())
    accept = server._accept
    attempts = []

    def run_out():
        attempts.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(server, "_accept", run_out)
    with caplog.at_level(logging.WARNING, "greenws.server"):
        with Peer.connect(server.address) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: len(attempts) >= 4)
            assert len(error_log.take()) == 1
            monkeypatch.setattr(server, "_accept", accept)
            assert peer.read_response().status == 200
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_descriptors_that_run_out_in_earnest(serve, error_log):
    import resource

    server = serve(make_routes())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    peers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with pytest.raises(OSError):
            while True:
                peers.append(socket.create_connection(server.address))
                gevent.sleep(0.001)
        wait_until(error_log.take)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for peer in peers:
        peer.close()
    with Peer.connect(server.address) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.read_response().status == 200
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= used + 2)
