"""What one thread asks of another, whose hub runs the greenlets of a server."""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent
import pytest

from greenws.server.serving_thread import ServingThread

from ..support.limits import limit


class Thread:
    """A plain thread that runs its hub until :meth:`end`, but not before ``runs`` is set."""

    def __init__(self, destroys: bool = True) -> None:
        self.runs = threading.Event()
        self.runs.set()
        self._has_made = threading.Event()
        self._is_over = False
        self._destroys = destroys
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._has_made.wait(limit())

    def _run(self) -> None:
        self.serving = ServingThread()
        self._has_made.set()
        while not self._is_over:
            self.runs.wait()
            gevent.sleep(0.002)
        if self._destroys:
            gevent.get_hub().destroy()

    def call(
        self, function: Callable[[], object], begin_within: float = 0, end_within: float = 0
    ) -> bool:
        return self.serving.call(function, begin_within or limit(), end_within or limit())

    def leave(self) -> None:
        self._is_over = True

    def end(self) -> None:
        self.leave()
        self.runs.set()
        self._thread.join(limit())
        assert not self._thread.is_alive()


@pytest.fixture
def thread():
    thread = Thread()
    yield thread
    thread.end()


def test_it_is_done_in_the_thread_and_waited_for(thread):
    found = []

    def function():
        gevent.sleep(0.01)
        found.append((threading.get_ident(), thread.serving.is_current))

    assert thread.call(function)
    assert found == [(thread._thread.ident, True)]
    assert not thread.serving.is_current


def test_other_greenlets_of_the_thread_that_waits_run(thread):
    is_set = threading.Event()
    gevent.spawn_later(0.01, is_set.set)
    assert thread.call(lambda: gevent.sleep(0) or is_set.wait(limit()))
    assert is_set.is_set()


def test_an_error_comes_to_the_one_who_asks(thread):
    def function():
        raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing"):
        thread.call(function)


@pytest.mark.parametrize("destroys", [True, False])
def test_a_thread_that_has_ended_does_nothing(destroys):
    thread = Thread(destroys)
    thread.end()
    hub = thread.serving.hub
    assert not thread.call(pytest.fail)
    if not destroys:
        hub.destroy()


def test_a_thread_that_ends_meanwhile():
    thread = Thread()

    def function():
        thread.leave()
        gevent.sleep(limit(60))

    assert not thread.call(function)
    thread.end()


def test_a_thread_that_does_not_run_its_hub_does_it_later(thread):
    thread.runs.clear()
    gevent.sleep(0.01)  # it may still be in its hub, and does it then
    is_done = threading.Event()
    try:
        thread.call(is_done.set, begin_within=0.02)
    except TimeoutError:
        assert not is_done.is_set()
    thread.runs.set()
    assert is_done.wait(limit())


def test_what_takes_too_long_is_no_longer_waited_for(thread):
    go_on = threading.Event()

    def function():
        while not go_on.is_set():
            gevent.sleep(0.002)

    with pytest.raises(TimeoutError):
        thread.call(function, end_within=0.02)
    go_on.set()
