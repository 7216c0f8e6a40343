"""Fixtures: a server on a free port, and a check for what a test leaves open."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import trustme
from gevent import ssl

import greenws
from greenws import refusals, surroundings
from greenws.hub.transport import Transport

from .support.examples import load_profile
from .support.leftovers import ErrorLog, HubErrors, live_greenlets, open_sockets
from .support.limits import limit
from .support.wire import Peer

load_profile()
surroundings._logged.add("psycopg2")  # which tests of databases import into this process


def pytest_collection_finish() -> None:
    set_aside()


@pytest.fixture(scope="module", autouse=True)
def _what_was_before() -> None:
    """What earlier modules imported and made is not looked at again after every test."""
    let_go()
    set_aside()


def set_aside() -> None:
    gc.collect()
    gc.freeze()


def let_go() -> None:
    """Runs the hub, which refers to the last greenlet that ended, and so to what that one used: it
    could be set aside for good, and found by a later test."""
    gevent.sleep(0)


@pytest.fixture(autouse=True)
def error_log() -> Iterator[ErrorLog]:
    """Fails a test during which greenws logged an error that the test did not take."""
    log = ErrorLog()
    logger = logging.getLogger("greenws")
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)
    assert [record.getMessage() for record in log.records] == []


@pytest.fixture(autouse=True)
def refusals_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test may have as many refusals in the log as a new process."""
    monkeypatch.setattr(refusals, "_limit", refusals._Limit())


@pytest.fixture(autouse=True)
def hub_errors(request: pytest.FixtureRequest) -> Iterator[HubErrors | None]:
    """Fails a test that leaves a greenlet or an open socket, or makes the hub print a traceback
    which the test did not take with ``take()``. Tests marked ``no_io`` go without."""
    if request.node.get_closest_marker("no_io"):
        yield None
        return
    hub = gevent.get_hub()
    hub.exception_stream = errors = HubErrors()
    greenlets = {id(greenlet) for greenlet in live_greenlets()}
    descriptors = open_sockets()
    yield errors

    def left() -> list[Any]:
        extra: list[Any] = [g for g in live_greenlets() if id(g) not in greenlets]
        extra += [f"{n} {t}" for n, t in open_sockets().items() if descriptors.get(n) != t]
        return extra

    began = time.monotonic()
    rounds = 0
    while left() and time.monotonic() - began < limit(3):
        gevent.sleep(0.003)
        rounds += 1
        if rounds % 4 == 0:  # most end by themselves
            gc.collect()
    let_go()
    remains = left()
    assert not remains, f"left over: {remains}"
    assert errors.take() == ""


@pytest.fixture
def pair() -> Iterator[Callable[..., tuple[greenws.WebSocket, Peer]]]:
    """``pair(**config)`` gives an open server-side WebSocket and the raw peer at its other end."""
    made: list[tuple[greenws.WebSocket, Peer]] = []

    def make(**options: Any) -> tuple[greenws.WebSocket, Peer]:
        config = greenws.Config(**options)
        ours, theirs = gevent.socket.socketpair()
        transport = Transport(ours, gevent.get_hub(), config.write_high_water, config.write_timeout)
        socket, peer = greenws.WebSocket(transport, config), Peer(theirs)
        made.append((socket, peer))
        return socket, peer

    yield make
    for socket, peer in made:
        peer.close()
        socket._abandon(1001)


@pytest.fixture(scope="session")
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for TLS: a server's, with a certificate for 127.0.0.1, and a client's that trusts
    it."""
    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    return served, trusting


TLS: dict[str, Any] = {}  # what every server is started with


@pytest.fixture(params=["plain", "tls"])
def over_tls_too(request: Any, certificates: Any, monkeypatch: Any) -> None:
    """Runs a test twice; the second time, its servers and peers speak TLS."""
    if request.param == "tls":
        served, trusting = certificates
        monkeypatch.setitem(TLS, "ssl_context", served)
        connect = Peer.connect

        def connect_by_tls(address: Any, timeout: float | None = None) -> Peer:
            peer = connect(address, timeout)
            peer.sock = trusting.wrap_socket(peer.sock, server_hostname="127.0.0.1")
            return peer

        monkeypatch.setattr(Peer, "connect", connect_by_tls)


@pytest.fixture
def serve() -> Iterator[Callable[..., greenws.WebSocketServer]]:
    """``serve(app, **options)`` starts a WebSocketServer on a free port; its address is
    ``server.address``."""
    servers: list[greenws.WebSocketServer] = []

    def start(app: Any, *, cls: Any = greenws.WebSocketServer, **options: Any) -> Any:
        options = {"log": None, **TLS, **options}
        server = cls(("127.0.0.1", 0), app, **options)
        server.start()
        server.address = ("127.0.0.1", server.server_port)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(timeout=2)
