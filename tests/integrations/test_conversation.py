"""A server that says several things in a row is not held back: TCP_NODELAY on every way in.

With Nagle's algorithm the second small write waits for the acknowledgement of the first, which the
peer's TCP delays by 40 ms. An echo never shows that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer

from greenws import UpgradeHandler, WebSocketHandler

from ..programs.conversation_app import Conversation
from ..support.processes import Process
from ..support.wire import TEXT, Peer, frame

ROUNDS = 40
LATE = 0.025  # seconds; what Nagle holds back comes after 40 ms
TRIES = 5  # Nagle delays every round of each, a busy machine some


class GreenConversation(Conversation):
    def pause(self) -> None:
        gevent.sleep(0.002)


app = WebSocketHandler(lambda request, protocols: GreenConversation())


def middleware(environ: dict[str, Any], start_response: Any) -> Any:
    return app(environ, start_response)


def count_late(address: Any) -> int:
    late = 0
    with Peer.open(address) as peer:
        for _ in range(ROUNDS):
            peer.send(frame(TEXT, b"hello"))
            began = time.monotonic()
            for _ in range(3):
                assert peer.read_frame() == (True, TEXT, b"hello")
            late += time.monotonic() - began > LATE
    return late


def assert_most_are_prompt(address: Any) -> None:
    late: list[int] = []
    while not late or late[-1] >= ROUNDS / 2:
        assert len(late) < TRIES, f"of {ROUNDS} each time: {late}"
        late.append(count_late(address))


@pytest.mark.parametrize("application", [app, middleware], ids=["direct", "middleware"])
def test_no_third_message_is_late(serve, application):
    assert_most_are_prompt(serve(application).address)


def test_no_third_message_is_late_on_pywsgi(serve):
    server = serve(app, cls=WSGIServer, handler_class=UpgradeHandler)
    assert_most_are_prompt(server.address)


SERVERS = {
    "flask run": ["-m", "flask", "--app", "conversation_app:flask_app", "run", "--port", "0"],
    **{
        name: ["-m", "gunicorn", "-b", "127.0.0.1:0", *options, "conversation_app:app"]
        for name, options in {
            "gunicorn gevent": ["-k", "gevent"],
            "gunicorn gthread": ["-k", "gthread", "--threads", "4"],
            "gunicorn greenws": ["-k", "greenws.gunicorn.Worker"],
        }.items()
    },
}


@contextlib.contextmanager
def running(name: str) -> Iterator[Process]:
    with Process(*SERVERS[name]) as process:
        yield process.wait_for_port()


@pytest.mark.parametrize("name", SERVERS)
def test_no_third_message_is_late_elsewhere(name):
    with running(name) as process:
        assert_most_are_prompt(process.address)
