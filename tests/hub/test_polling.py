"""Which greenlet runs next, with epoll and with gevent's watchers, over real sockets."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError
from gevent.monkey import get_original
from greenlet import greenlet

from greenws import testing
from greenws.form import PURE
from greenws.hub import polling
from greenws.hub.polling import READABLE, EpollPoller, Waiter, WatcherPoller, drop_poller

from ..support.forking import in_child
from ..support.limits import again_after_standstill, limit, stays, wait_until


@pytest.fixture(params=["epoll", "watchers"])
def sockets(request):
    """``sockets(n)`` gives n waiters and the peers of their sockets."""
    if request.param == "epoll" and not hasattr(select, "epoll"):
        pytest.skip("this system has no epoll")
    hub = gevent.get_hub()
    poller = {"epoll": EpollPoller, "watchers": WatcherPoller}[request.param]()
    made = []

    def make(count):
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            waiter = Waiter(hub, ours.fileno())
            waiter.poller = poller
            made.append((waiter, ours, theirs))
        return [waiter for waiter, _, _ in made], [theirs for _, _, theirs in made]

    yield make
    for waiter, ours, theirs in made:
        waiter.unwatch()
        ours.close()
        theirs.close()


def take(waiter):
    """Waits, and reads what there is, as edges demand."""
    while True:
        assert waiter.wait() == READABLE
        try:
            return os.read(waiter.fileno, 1 << 16)
        except BlockingIOError:
            continue


def test_a_wait_ends_when_the_socket_is_readable(sockets):
    (waiter,), (peer,) = sockets(1)
    reader = gevent.spawn(take, waiter)
    stays(lambda: not reader.ready())
    peer.send(b"bytes")
    assert reader.get(timeout=limit()) == b"bytes"


def test_an_event_while_nobody_waits_is_remembered(sockets):
    (waiter,), (peer,) = sockets(1)
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    peer.send(b"1")
    reader.get(timeout=limit())
    peer.send(b"2")
    gevent.sleep(0.01)  # the event comes now
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"2"
    peer.send(b"3")
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"3"


def test_many_sockets_each_get_their_own(sockets):
    waiters, peers = sockets(300)  # more than a batch
    taken: list[list[bytes]] = [[] for _ in waiters]

    def take_all(number: int) -> None:
        for _ in range(3):
            taken[number].append(take(waiters[number]))

    readers = [gevent.spawn(take_all, number) for number in range(300)]
    gevent.sleep(0)
    for turn in range(3):
        for number, peer in enumerate(peers):
            peer.send(b"%d:%d" % (number, turn))
        wait_until(lambda turn=turn: all(len(each) > turn for each in taken))
    gevent.joinall(readers, timeout=limit(), raise_error=True)
    for number, each in enumerate(taken):
        assert each == [b"%d:%d" % (number, turn) for turn in range(3)]


def test_a_greenlet_that_waits_elsewhere_does_not_hold_up_the_batch(sockets):
    waiters, peers = sockets(3)
    go_on = Event()

    def stop_in_between(waiter):
        data = take(waiter)
        go_on.wait()
        return data

    first = gevent.spawn(stop_in_between, waiters[0])
    others = [gevent.spawn(take, waiter) for waiter in waiters[1:]]
    gevent.sleep(0)
    for peer in peers:
        peer.send(b"x")
    gevent.joinall(others, timeout=limit(), raise_error=True)
    assert [other.get() for other in others] == [b"x", b"x"] and not first.ready()
    go_on.set()
    assert first.get(timeout=limit()) == b"x"


def test_killed_in_the_middle_of_a_batch(sockets):
    waiters, peers = sockets(4)
    readers = []

    def kill_the_next(waiter):
        data = take(waiter)
        gevent.killall(readers[1:2], block=False)
        return data

    readers += [gevent.spawn(kill_the_next, waiters[0])]
    readers += [gevent.spawn(take, waiter) for waiter in waiters[1:]]
    gevent.sleep(0)
    for peer in peers:
        peer.send(b"x")
    assert [readers[i].get(timeout=limit()) for i in (0, 2, 3)] == [b"x"] * 3
    readers[1].join(limit())
    # Killed before its turn or after it: its socket can be waited for again.
    peers[1].send(b"y")
    assert gevent.spawn(take, waiters[1]).get(timeout=limit()).endswith(b"y")


def test_a_greenlet_that_dies_is_reported_and_the_rest_goes_on(sockets, hub_errors):
    waiters, peers = sockets(3)

    def fail():
        take(waiters[0])
        raise ValueError("escaped")

    hub = gevent.get_hub()
    bare = greenlet(fail, parent=hub)
    hub.loop.run_callback(bare.switch)
    others = [gevent.spawn(take, waiter) for waiter in waiters[1:]]
    gevent.sleep(0)
    for peer in peers:
        peer.send(b"x")
    gevent.joinall(others, timeout=limit(), raise_error=True)
    assert "escaped" in hub_errors.take()


def test_a_failed_flush_is_reported_and_the_rest_goes_on(sockets, hub_errors):
    class Corked(Waiter):
        def flush(self):
            self.poller.cork.owner = None
            raise MemoryError("no room")

    waiters, peers = sockets(3)
    poller = waiters[0].poller
    if isinstance(poller, WatcherPoller):
        return  # which has no batches
    corked = Corked(gevent.get_hub(), 0)
    corked.poller = poller

    def cork():
        take(waiters[0])
        poller.cork.owner = corked
        take(waiters[0])

    readers = [gevent.spawn(cork), *(gevent.spawn(take, waiter) for waiter in waiters[1:])]
    gevent.sleep(0)
    for peer in peers:
        peer.send(b"x")
    assert [reader.get(timeout=limit()) for reader in readers[1:]] == [b"x", b"x"]
    wait_until(lambda: poller.cork.owner is None)
    peers[0].send(b"y")
    readers[0].get(timeout=limit())
    assert "no room" in hub_errors.take()


def test_a_socket_that_cannot_be_watched_is_an_error_of_its_wait(sockets, tmp_path):
    (waiter, other), (_, peer) = sockets(2)
    if isinstance(waiter.poller, WatcherPoller):
        return  # gevent's watchers tell in other ways
    with open(tmp_path / "file", "w+b") as file:  # which no epoll takes
        fileno = waiter.fileno
        waiter.fileno = file.fileno()
        for _ in range(2):
            with pytest.raises(PermissionError):
                waiter.wait()
        waiter.fileno = fileno
    reader = gevent.spawn(take, other)
    gevent.sleep(0)
    peer.send(b"x")
    assert reader.get(timeout=limit()) == b"x"


def test_wake_ends_a_wait_with_its_reason(sockets):
    (waiter,), _ = sockets(1)
    reader = gevent.spawn(waiter.wait)
    gevent.sleep(0)
    gevent.get_hub().loop.run_callback(waiter.wake, 7)
    assert reader.get(timeout=limit()) == 7
    gevent.get_hub().loop.run_callback(waiter.wake, 7)  # no greenlet waits: nothing happens
    gevent.sleep(0)


def test_the_hub_itself_cannot_wait(sockets):
    (waiter,), _ = sockets(1)
    raised = []

    def callback():
        try:
            waiter.wait()
        except BlockingSwitchOutError as error:
            raised.append(error)

    gevent.get_hub().loop.run_callback(callback)
    wait_until(lambda: raised)
    assert len(raised) == 1


def test_the_end_of_the_stream_is_an_event(sockets):
    (waiter,), (peer,) = sockets(1)
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    peer.close()
    assert reader.get(timeout=limit()) == b""


def test_a_descriptor_that_is_used_again_is_a_new_socket(sockets):
    (waiter,), (peer,) = sockets(1)
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    peer.send(b"x")
    reader.get(timeout=limit())
    waiter.unwatch()
    ours, theirs = socket.socketpair()
    other, _ = socket.socketpair()
    os.dup2(ours.fileno(), waiter.fileno)  # closes the first, whose descriptor this is now
    again = Waiter(waiter.hub, waiter.fileno)
    again.poller = waiter.poller
    reader = gevent.spawn(take, again)
    gevent.sleep(0)
    theirs.send(b"y")
    assert reader.get(timeout=limit()) == b"y"
    again.unwatch()
    for sock in (ours, theirs, other, _):
        sock.close()


def test_nothing_is_left_once_the_last_socket_is_gone(sockets):
    (waiter, other), _ = sockets(2)
    for one in (waiter, other):
        reader = gevent.spawn(one.wait)
        gevent.sleep(0)
        reader.kill()
    loop = waiter.hub.loop
    before = loop.activecnt
    waiter.unwatch()
    other.unwatch()
    assert loop.activecnt < before
    waiter.unwatch()  # again: nothing


def test_a_poller_is_freed_with_its_hub():
    def session():
        ours, theirs = socket.socketpair()
        waiter = Waiter(gevent.get_hub(), ours.fileno())
        gevent.get_hub().loop.run_callback(theirs.send, b"x")
        ours.setblocking(False)
        assert take(waiter) == b"x"
        waiter.unwatch()
        ours.close()
        theirs.close()
        drop_poller(gevent.get_hub())
        gevent.get_hub().destroy()

    gc.collect()  # those of hubs that ended before
    before, descriptors = list(polling._pollers), os.listdir("/proc/self/fd")
    thread = get_original("threading", "Thread")(target=session)
    thread.start()
    thread.join()
    gc.collect()
    assert list(polling._pollers) == before
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.fixture
def alone(sockets):
    """A socket that has been the only one for so long that the loop watches it itself; its peer."""
    (waiter,), (peer,) = sockets(1)

    def take_all():
        for _ in range(100):
            assert take(waiter) == b"x"
            peer.send(b"x")

    if isinstance(waiter.poller, EpollPoller):
        peer.send(b"x")
        gevent.spawn(take_all).join(limit())
        assert waiter.poller.lone is waiter
        os.read(waiter.fileno, 1)
    return waiter, peer


def test_the_clock_goes_on_while_a_socket_is_alone(alone):
    """A sender that has not read for a second looks at what has been received."""
    waiter, peer = alone
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    before = waiter.poller.ticks
    wait_until(lambda: waiter.poller.ticks > before)
    peer.send(b"y")
    assert reader.get(timeout=limit()) == b"y"


def test_a_socket_that_is_alone_is_one_of_several_again(alone, sockets):
    waiter, peer = alone
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    (_, other), (_, other_peer) = sockets(1)
    other_reader = gevent.spawn(take, other)
    gevent.sleep(0)
    assert not hasattr(waiter.poller, "lone") or waiter.poller.lone is None
    other_peer.send(b"other")
    peer.send(b"one")
    assert (reader.get(timeout=limit()), other_reader.get(timeout=limit())) == (b"one", b"other")
    other.unwatch()
    peer.send(b"again")
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"again"


def test_what_comes_for_a_lone_socket_as_another_opens_is_not_lost(alone, sockets):
    waiter, peer = alone
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    peer.send(b"before")  # which the loop has not seen
    (_, other), _ = sockets(1)
    waiting = gevent.spawn(other.wait)
    assert reader.get(timeout=limit()) == b"before"
    waiting.kill()


def test_a_lone_socket_that_nobody_reads_does_not_keep_the_loop_busy(alone):
    waiter, peer = alone
    peer.send(b"early")
    gevent.sleep(0.01)
    before = waiter.hub.loop.iteration
    gevent.sleep(0.05)
    assert waiter.hub.loop.iteration - before < 20
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"early"
    peer.send(b"late")
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"late"


def test_the_end_of_a_lone_sockets_stream_is_an_event(alone):
    waiter, peer = alone
    reader = gevent.spawn(lambda: (take(waiter), take(waiter)))
    gevent.sleep(0)
    peer.send(b"last")
    peer.close()
    assert reader.get(timeout=limit()) == (b"last", b"")


def test_nothing_is_left_of_a_lone_socket(alone):
    waiter, _ = alone
    reader = gevent.spawn(waiter.wait)
    gevent.sleep(0)
    reader.kill()
    before = waiter.hub.loop.activecnt
    waiter.unwatch()
    assert waiter.hub.loop.activecnt < before
    gevent.sleep(0.01)


def test_a_greenlet_of_a_lone_socket_that_dies_is_reported(alone, hub_errors):
    waiter, peer = alone

    def fail():
        take(waiter)
        raise ValueError("escaped")

    bare = greenlet(fail, parent=gevent.get_hub())
    gevent.get_hub().loop.run_callback(bare.switch)
    gevent.sleep(0)
    peer.send(b"x")
    wait_until(lambda: bare.dead)
    peer.send(b"y")
    assert gevent.spawn(take, waiter).get(timeout=limit()) == b"y"
    assert "escaped" in hub_errors.take()


@pytest.fixture
def answered(alone, monkeypatch):
    """A lone socket, and ``ask(n)``, which sends and takes ``n`` times: in the test's own greenlet,
    since its timeout would keep the loop alive. The peer, in another thread which is not counted,
    sends back what it gets, and hangs up if nothing comes."""
    waiter, peer = alone
    monkeypatch.setattr(polling, "_count_threads", lambda: 0)
    peer.settimeout(limit())

    def answer():
        with contextlib.suppress(TimeoutError):
            while data := peer.recv(100):
                peer.sendall(data)
        peer.shutdown(socket.SHUT_RDWR)

    def ask(count):
        for _ in range(count):
            os.write(waiter.fileno, b"?")
            assert take(waiter) == b"?"

    thread = get_original("threading", "Thread")(target=answer)
    thread.start()
    yield waiter, ask
    peer.shutdown(socket.SHUT_RDWR)
    thread.join()


def waits_alone(waiter):
    """Whether it may: with epoll, in the compiled form."""
    return isinstance(waiter.poller, EpollPoller) and not PURE


@again_after_standstill(0.02)
def test_quick_answers_for_a_lone_socket_come_without_the_hub(answered):
    waiter, ask = answered
    ask(2)
    before = waiter.hub.loop.iteration
    ask(100)
    assert not waits_alone(waiter) or waiter.hub.loop.iteration - before < 50


def test_another_thread_could_call_so_answers_come_through_the_hub(answered, monkeypatch):
    waiter, ask = answered
    monkeypatch.setattr(polling, "_count_threads", get_original("_thread", "_count"))
    end = time.monotonic() + 0.03
    while time.monotonic() < end:
        ask(2)
    before = waiter.hub.loop.iteration
    ask(100)
    assert waiter.hub.loop.iteration - before >= 100


@again_after_standstill(0.02)
def test_the_threads_of_the_hubs_pool_are_none_that_could_call(answered, monkeypatch):
    waiter, ask = answered
    waiter.hub.threadpool.apply(int)
    monkeypatch.setattr(polling, "_count_threads", lambda: waiter.hub.threadpool.size)
    ask(2)
    before = waiter.hub.loop.iteration
    ask(100)
    assert not waits_alone(waiter) or waiter.hub.loop.iteration - before < 50


def test_the_timers_of_others_run_beside_quick_answers(answered):
    waiter, ask = answered
    fired = Event()
    timer = waiter.hub.loop.timer(0.03, ref=False)
    timer.start(fired.set)
    end = time.monotonic() + limit()
    while not fired.is_set():
        ask(10)
        assert time.monotonic() < end
    timer.close()


def test_a_timer_that_has_expired_is_not_late_for_quick_answers(answered):
    """It is pending, but no longer active, when the socket's greenlet wakes before it."""
    waiter, ask = answered
    for _ in range(10):
        fired: list[bool] = []
        timer = waiter.hub.loop.timer(0.004, priority=-1)  # as of gevent.Timeout
        due = time.monotonic() + 0.004
        timer.start(fired.append, True)
        while time.monotonic() < due:
            ask(1)
        for _ in range(5):  # in 10 ms there are a hundred answers
            ask(1)
        assert fired
        timer.close()


def test_a_stopped_clock_lets_no_socket_wait_without_the_hub(answered):
    waiter, ask = answered
    with testing.clock():
        ask(2)
        before = waiter.hub.loop.iteration
        ask(100)
        assert waiter.hub.loop.iteration - before >= 100


def test_who_waits_for_the_same_event_runs_before_quick_answers(answered):
    _, ask = answered
    ask(10)
    event = Event()
    woken = []
    gevent.spawn(lambda: woken.append(event.wait()))
    gevent.spawn(event.set)
    event.wait()
    ask(5)
    assert woken == [True]


@pytest.mark.parametrize("begin", ["spawn", "thread"])
def test_other_greenlets_run_beside_quick_answers(answered, begin):
    waiter, ask = answered
    ask(10)
    began = Event()
    if begin == "spawn":
        gevent.spawn(began.set)
    else:
        waiter.hub.loop.run_callback_threadsafe(began.set)
    ask(2)
    assert began.is_set()


@again_after_standstill(0.02)
def test_the_loops_time_goes_on_beside_quick_answers(answered):
    """From it timers are due that start before the hub runs again."""
    waiter, ask = answered
    loop = waiter.hub.loop
    seen = 0
    for _ in range(50):
        ask(2)
        iteration, now = loop.iteration, loop.now()
        time.sleep(0.002)
        ask(1)
        if loop.iteration == iteration:  # the hub has not run
            seen += 1
            assert loop.now() - now > 0.0015
    assert seen or not waits_alone(waiter)


def test_a_lone_sockets_own_timer_is_not_late_for_quick_answers(answered):
    """While it is due later, it does not keep the greenlet from waiting without the hub."""
    waiter, ask = answered
    fired = Event()
    timer = waiter.hub.loop.timer(0.05)
    timer.start(fired.set)
    waiter.timer_due = time.monotonic() + 0.05
    while time.monotonic() < waiter.timer_due:
        ask(10)
    ask(2)
    assert fired.is_set()
    timer.close()
    waiter.timer_due = float("inf")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_signals_take_nothing_of_quick_answers(answered):
    _, ask = answered
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    end = time.monotonic() + limit()
    try:
        while len(seen) < 20:
            ask(10)
            assert time.monotonic() < end
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_leaves_quick_answers_to_its_parent(answered):
    waiter, ask = answered
    ask(10)

    def child():
        assert waiter.wait() == READABLE
        waiter.unwatch()

    in_child(child)
    ask(100)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_takes_nothing_of_a_lone_socket(alone):
    waiter, peer = alone
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)

    def child():
        peer.send(b"parent's")
        gevent.sleep(0.02)
        assert not reader.ready()
        assert waiter.wait() == READABLE
        waiter.unwatch()

    in_child(child)
    assert reader.get(timeout=limit()) == b"parent's"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_what_a_child_closes_is_still_open_for_its_parent():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    waiter = Waiter(gevent.get_hub(), ours.fileno())
    reader = gevent.spawn(take, waiter)
    gevent.sleep(0)
    child = os.fork()
    if child == 0:
        waiter.unwatch()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    theirs.send(b"x")
    assert reader.get(timeout=limit()) == b"x"
    waiter.unwatch()
    ours.close()
    theirs.close()


def test_prefetched_objects_are_not_kept_alive(sockets):
    class Thing:
        pass

    waiters, peers = sockets(20)
    things = [Thing() for _ in waiters]
    gone = [weakref.ref(thing) for thing in things]
    for waiter, thing in zip(waiters, things, strict=True):
        waiter.set_prefetch(thing, [thing], bytearray(1 << 20), None)
    del things, thing
    gc.collect()
    assert not any(reference() for reference in gone)
    readers = [gevent.spawn(take, waiter) for waiter in waiters]
    gevent.sleep(0)
    for number, peer in enumerate(peers):
        peer.sendall(b"%d" % number)
    gevent.joinall(readers, timeout=limit())
    assert [reader.value for reader in readers] == [b"%d" % number for number in range(20)]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
def test_a_patched_program_has_the_same_poller():
    """gevent takes select.epoll out of its module."""
    source = """
from gevent import monkey
monkey.patch_all()
import gevent, select
from greenws.hub.polling import poller_of
print(hasattr(select, "epoll"), type(poller_of(gevent.get_hub())).__name__)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False EpollPoller\n", "")


@pytest.mark.parametrize(
    "application", ["routes", "lambda environ, answer: routes(environ, answer)"]
)
def test_sessions_begin_where_gevent_runs_without_its_c_modules(application):
    """In a batch of connections, and one by one."""
    source = f"""
import greenws
routes = greenws.Routes()
@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)
server = greenws.WebSocketServer(("127.0.0.1", 0), {application})
server.start()
with greenws.connect(f"ws://127.0.0.1:{{server.server_port}}/") as client:
    client.send("hello")
    print(client.receive())
server.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        env={**os.environ, "PURE_PYTHON": "1"},
    )
    assert (done.stdout, done.stderr) == ("hello\n", "")
