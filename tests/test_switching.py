"""Greenlets and threads, by the few calls that the path of a message makes."""

from __future__ import annotations

import threading

import greenlet
import pytest

from greenws import switching


def test_switch_runs_the_other_until_it_switches_back():
    here = switching.current()
    assert here is greenlet.getcurrent()
    seen = []

    def other():
        seen.append(switching.current())
        switching.switch(here)
        seen.append("again")

    there = greenlet.greenlet(other)
    switching.switch(there)
    assert seen == [there]
    switching.switch(there)
    assert seen == [there, "again"] and there.dead


def test_what_escapes_a_greenlet_reaches_its_parent():
    def fail():
        raise ValueError("escaped")

    with pytest.raises(ValueError, match="escaped"):
        switching.switch(greenlet.greenlet(fail))


def test_thread_tells_threads_apart():
    switching.load()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(switching.thread()))
    thread.start()
    thread.join()
    assert seen[0] != switching.thread() == threading.get_ident()
