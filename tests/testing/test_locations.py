"""Where a greenlet stands."""

from __future__ import annotations

from traceback import extract_tb

import gevent
from gevent.event import Event
from gevent.queue import Queue

from greenws.testing.locations import caller, location_of, without_machinery


def test_the_line_of_the_application_and_not_the_librarys():
    queue = Queue()

    def application():
        return queue.get()  # here

    greenlet = gevent.Greenlet(application)
    assert location_of(greenlet) == "has not run yet"
    greenlet.start()
    gevent.sleep(0)
    text = location_of(greenlet)
    assert text.startswith("waits at ") and "test_locations.py:" in text
    assert text.endswith("in application: return queue.get()  # here")
    queue.put(None)
    greenlet.join()
    assert location_of(greenlet) == "has ended"
    assert location_of(None) == "nobody waits for it"


def test_a_greenlet_that_runs_nothing_but_a_library():
    event = Event()
    greenlet = gevent.spawn(event.wait)
    gevent.sleep(0)
    assert location_of(greenlet).startswith("waits ")
    event.set()
    greenlet.join()


def test_the_line_that_called():
    file, _, line = caller().rpartition(":")
    assert file.endswith("test_locations.py") and int(line) > 0


def test_a_traceback_begins_with_the_application(hub_errors):
    def fails():
        raise LookupError

    greenlet = gevent.spawn(fails)
    greenlet.join()
    assert "LookupError" in hub_errors.take()
    names = [frame.name for frame in extract_tb(without_machinery(greenlet.exc_info[2]))]
    assert names == ["fails"]
    assert without_machinery(None) is None
