"""Clients in plain threads and in the main thread of a script, patched or not."""

from __future__ import annotations

import gc
import signal
import sys
import threading

import gevent
import gevent.event
import pytest
from gevent import subprocess

import greenws
from greenws import Routes

from ..support.limits import limit
from ..support.paths import PROGRAMS


@pytest.fixture
def url(serve):
    routes = Routes()

    @routes.websocket("/")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    return f"ws://localhost:{serve(routes).server_port}/"


def run(url, *args):
    command = [sys.executable, str(PROGRAMS / "client_script.py"), url, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(20))


def test_the_hub_of_a_thread_ends_with_it(url):
    done = run(url, "threads")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "leaked [0, 0]\nleaked [0, 0]\n"


@pytest.mark.parametrize("form", ["plain", "patched"])
def test_ctrl_c_interrupts_a_read_in_the_main_thread(url, form):
    done = run(url, "interrupted", form)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr and "receive" in done.stderr


@pytest.mark.parametrize("form", ["plain", "patched"])
def test_a_child_that_was_forked_has_no_socket_of_its_parents(url, form):
    done = run(url, "forked", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "child 7, parent 'from the parent'\n"


def test_a_thread_of_the_pool_has_a_client_of_its_own(url):
    def converse():
        with greenws.connect(url, proxy=None) as socket:
            socket.send("x")
            return socket.receive(limit()), threading.get_ident()

    answer, ident = gevent.get_hub().threadpool.apply(converse)
    assert answer == "x" and ident != threading.get_ident()


def test_a_socket_that_was_forgotten_is_closed(serve):
    ended = gevent.event.AsyncResult()
    routes = Routes()

    @routes.websocket("/")
    def wait(request, socket):
        try:
            socket.receive()
        except greenws.ConnectionClosed as error:
            ended.set(error.code)

    socket = greenws.connect(f"ws://127.0.0.1:{serve(routes).server_port}/", proxy=None)
    with pytest.warns(ResourceWarning, match=r"unclosed <WebSocket \('127"):
        del socket
        gc.collect()
    assert ended.get(timeout=limit()) == 1006
