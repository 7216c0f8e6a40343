"""The current greenlet and thread, switching, and the memory of greenlets."""

from __future__ import annotations

import subprocess
import sys
import threading

import gevent
import greenlet
import pytest

from greenws.hub import switching


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


def test_thread_id_differs_between_threads():
    switching.load()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(switching.thread_id()))
    thread.start()
    thread.join()
    assert seen[0] != switching.thread_id() == threading.get_ident()


_FAULTS = """
import resource, gevent, greenws.hub.polling

def nothing():
    pass

def spawn(count):
    for _ in range(count):
        gevent.spawn(nothing).join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(greenws.hub.polling.__file__.endswith(".so"), -spawn(100) + spawn(1000))
"""


def test_greenlets_get_the_memory_of_those_that_ended():
    # Otherwise CPython 3.11 maps pages for the frames of each, which fault when they are touched.
    run = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    compiled, faults = run.stdout.split()
    if compiled == "True":
        assert int(faults) < 500


def test_many_greenlets_at_once_with_deep_stacks():
    def recurse(depth):
        return 0 if depth == 0 else 1 + recurse(depth - 1)

    def run():
        gevent.sleep(0)
        return recurse(200)

    for _ in range(3):  # more than are kept, and more than one chunk each
        greenlets = [gevent.spawn(run) for _ in range(300)]
        gevent.joinall(greenlets)
        assert [greenlet.get() for greenlet in greenlets] == [200] * 300
