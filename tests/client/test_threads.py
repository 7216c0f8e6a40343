"""Clients in plain threads and in the main thread of a script, patched or not."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gevent
import gevent.event
import pytest
from gevent import subprocess

import greenws
from greenws import Routes
from greenws.upgrade import hub_of_this_thread

from ..support.limits import limit, wait_until
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


def in_thread(function):
    """What it returns in a thread that has no hub yet."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        wait_until(future.done)
        return future.result()


def test_the_hub_of_a_thread_ends_with_it(url):
    done = run(url, "threads")
    assert (done.returncode, done.stderr) == (0, "")
    *ended, outlived = done.stdout.splitlines()
    assert ended == ["leaked [0, 0]", "leaked [0, 0]"]
    assert outlived == "leaked [0, 0], closed 1006, the hub of its thread has ended"


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


def test_a_client_ends_with_the_session_of_a_servers_thread(url):
    def converse():
        with hub_of_this_thread({}):
            socket = greenws.connect(url, proxy=None)
        with pytest.raises(greenws.ConnectionClosed, match="the hub of its thread has ended"):
            socket.receive(limit())
        return socket

    socket = in_thread(converse)
    socket.close()
    assert (socket.is_connected, socket.close_code) == (False, 1006)


def test_a_client_that_a_greenlet_reads_ends_with_its_hub(url):
    # Without the resolver, whose end would let the reader run.
    url = url.replace("localhost", "127.0.0.1")

    def converse():
        with hub_of_this_thread({}):
            socket = greenws.connect(url, proxy=None)
            reading = gevent.spawn(socket.receive)
            wait_until(lambda: socket._transport.greenlet is reading)
        with pytest.raises(greenws.ConnectionClosed, match="the hub of its thread has ended"):
            socket.receive(limit())
        return socket, reading

    socket, _ = in_thread(converse)
    with pytest.raises(greenws.ConnectionClosed, match="the hub of its thread has ended"):
        socket.send("x")
    assert (socket.close_code, socket.close_reason) == (1006, "the hub of its thread has ended")


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
