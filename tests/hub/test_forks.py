"""The number of the process, in both forms, and what of the hub a child has."""

from __future__ import annotations

import os
import socket

import gevent

from greenws.hub import forks, polling
from greenws.hub.polling import READABLE, EpollPoller, Waiter, WatcherPoller, poller_of
from greenws.hub.transport import FOREVER, Transport

from ..support.forking import in_child
from ..support.limits import limit


def test_it_is_the_process_that_runs():
    assert forks.process() == os.getpid()

    def child():
        assert forks.process() == os.getpid() != parent

    parent = forks.process()
    in_child(child)
    assert forks.process() == parent


def test_objects_know_whose_they_are_before_any_hook_has_run():
    """In the compiled form, too, where the number is kept in C."""
    made = Waiter(gevent.get_hub(), 0)
    assert made.process == os.getpid()

    def child():
        grandchild = os.fork()
        made_here = Waiter(gevent.get_hub(), 0)
        assert made.process != made_here.process == os.getpid()
        if grandchild:
            assert os.waitpid(grandchild, 0)[1] == 0

    in_child(child)


def test_a_child_has_a_poller_of_its_own_and_the_parent_keeps_its_own():
    before = poller_of(gevent.get_hub())

    def child():
        assert poller_of(gevent.get_hub()) is not before
        assert poller_of(gevent.get_hub()).process == os.getpid()

    in_child(child)
    assert poller_of(gevent.get_hub()) is before


def test_a_wait_on_an_inherited_socket_does_not_block_and_takes_nothing():
    for kind in (EpollPoller, WatcherPoller):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        waiter = Waiter(gevent.get_hub(), ours.fileno())
        waiter.poller = kind()
        reader = gevent.spawn(waiter.wait)
        gevent.sleep(0)

        def child(waiter=waiter, reader=reader, theirs=theirs):
            theirs.send(b"x")
            gevent.sleep(0.05)
            assert not reader.ready()  # it is the parent's
            waiter.watched = False
            waiter.watch()
            assert not waiter.watched
            assert waiter.wait() == READABLE
            waiter.unwatch()

        in_child(child)
        assert reader.get(timeout=limit()) == READABLE
        assert ours.recv(10) == b"x"
        waiter.unwatch()
        waiter.poller.close()
        ours.close()
        theirs.close()


def test_a_poller_that_a_hook_uses_before_ours_is_already_the_childs():
    hub = gevent.get_hub()
    inherited = poller_of(hub)

    def child():
        polling._pollers[hub] = inherited  # as if ours had not run
        made = poller_of(hub)
        assert made is not inherited
        polling._after_fork()
        assert poller_of(hub) is made

    in_child(child)


def test_what_an_inherited_transport_holds_back_is_not_sent():
    """Not from the cork, not from the outbox, not a shutdown: whatever is called, or collected."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    transport = Transport(ours, gevent.get_hub(), write_timeout=0.05)
    transport.send_large(b"", bytes(1_000_000))
    assert transport.backlog
    theirs.setblocking(False)

    def child():
        received = 0
        while True:  # so that it can be written to
            try:
                received += len(theirs.recv(1 << 20))
            except BlockingIOError:
                break
        gevent.sleep(0.2)  # longer than write_timeout
        for call in (transport.flush, transport.finish_writing, transport.close):
            call()
        assert transport.receive(FOREVER) == 0
        transport.send(b"x")
        transport.hold(b"x")
        try:
            data = theirs.recv(10)
        except BlockingIOError:
            return
        raise AssertionError(f"the child sent {data!r}")

    in_child(child, hub_runs=False)
    assert transport.backlog and not transport.failure
    transport.close()
    theirs.close()
