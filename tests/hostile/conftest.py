"""Attacks on a server, and what must hold after each."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import greenws
from greenws import Config

from ..support.limits import wait_until
from ..support.target import Target, make_routes


@pytest.fixture(params=["plain", "tls"])
def attack(request: Any, certificates: Any) -> Iterator[Callable[..., Any]]:
    """``with attack(**config) as target:`` and afterwards all is well. ``routes`` takes the place
    of :func:`make_routes`."""

    @contextlib.contextmanager
    def under_attack(**options: Any) -> Iterator[Target]:
        errors = io.StringIO()
        routes = options.pop("routes", None) or make_routes()
        tls = {"ssl_context": certificates[0]} if request.param == "tls" else {}
        server = greenws.WebSocketServer(
            ("127.0.0.1", 0),
            routes,
            log=None,
            error_log=errors,
            config=Config(**options),
            **tls,
        )
        server.start()
        server.address = ("127.0.0.1", server.server_port)
        target = Target(server, errors, certificates[1] if tls else None)
        try:
            yield target
            target.check_health()
            wait_until(lambda: len(os.listdir("/proc/self/fd")) <= target.descriptors)
            wait_until(lambda: not server.clients)
            assert "Traceback" not in errors.getvalue()
            assert errors.getvalue().isascii() and "\x1b" not in errors.getvalue()
        finally:
            server.stop(timeout=1)

    yield under_attack
