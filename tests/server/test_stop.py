"""Stopping: which sessions get a Close, what is waited for, and for how long; signals."""

from __future__ import annotations

import logging
import signal
import threading
import time

import gevent
import pytest
from gevent.event import Event

import greenws
from greenws import Config, Routes, WebSocketServer

from ..support.limits import again_after_standstill, limit, pace, stays, wait_until
from ..support.processes import PROGRAMS, Process
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame, request

GOING_AWAY = b"\x03\xe9"


class Serving:
    """A server that was made here and is served by a plain thread, as in fixtures; ``server`` is
    one whose sessions echo."""

    def __init__(self, make=WebSocketServer, serve=WebSocketServer.serve_forever):
        routes = Routes()

        @routes.websocket("/")
        def echo(request, socket):
            for message in socket:
                socket.send(message)
                if message == "stop":
                    gevent.spawn(self.server.stop)

        self.failed = []
        self.server = make(("127.0.0.1", 0), routes)
        self.thread = threading.Thread(target=self._run, args=(serve,), daemon=True)

    def _run(self, serve):
        try:
            serve(self.server)
        except BaseException as error:
            self.failed.append(error)
        gevent.get_hub().destroy()

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.address = ("127.0.0.1", self.server.server_port)
        return self

    def __exit__(self, *exc):
        self.server.stop(0)
        self.thread.join(limit(20))
        assert not self.thread.is_alive() and self.failed == []


@pytest.mark.parametrize("stops_in", ["session", "other thread"])
def test_a_server_that_was_made_in_another_thread_serves_and_stops(stops_in):
    with Serving() as serving:
        url = f"ws://127.0.0.1:{serving.server.server_port}/"
        with greenws.connect(url, open_timeout=limit()) as socket:
            socket.send("stop" if stops_in == "session" else "hello")
            assert socket.receive(limit())
            reader = gevent.spawn(list, socket)  # it answers the Close
            if stops_in == "other thread":
                serving.server.stop()
                assert not serving.server.started
            reader.get(timeout=limit(20))
            assert socket.close_code == 1001


def test_any_number_of_threads_may_stop_and_all_wait_for_the_end():
    with Serving() as serving, Peer.open(serving.address) as peer:  # which answers no Close
        ended = []

        def stop(grace):
            serving.server.stop(grace=grace)
            ended.append((grace, serving.server.admission.busy))

        threads = [threading.Thread(target=stop, args=(0.2,), daemon=True)]
        threads[0].start()
        assert peer.read_close(answer=False)[0] == 1001
        threads += [threading.Thread(target=stop, args=(limit(),), daemon=True) for _ in range(3)]
        for thread in threads[1:]:
            thread.start()
        stop(limit())
        wait_until(lambda: len(ended) == 5)
        assert {busy for _, busy in ended} == {0}


def test_a_thread_that_leaves_as_soon_as_the_stop_begins_is_not_waited_for():
    def serve(server):
        server.start()
        while server.started:
            gevent.sleep(0.002)

    with Serving(serve=serve) as serving:
        serving.server.admission.begin_work()
        serving.server.stop(grace=60)
        assert not serving.server.started and serving.server.closed


def test_a_subclass_whose_stop_is_gevent_s_stops_once():
    class Server(WebSocketServer):
        stops = 0

        def stop(self, timeout=None):
            self.stops += 1
            super().stop(timeout)

    with Serving(Server) as serving:
        before = serving.server.stops
        serving.server.stop(timeout=limit())
        assert not serving.server.started
        assert serving.server.stops == before + 2  # serve_forever() calls it, too


def test_an_error_of_a_stop_in_another_thread_comes_to_the_one_who_stops():
    class Server(WebSocketServer):
        fails = True

        def close(self):
            super().close()
            if self.fails:
                self.fails = False
                raise OSError("cannot close")

    with Serving(Server) as serving:
        with pytest.raises(OSError, match="cannot close"):
            serving.server.stop()


def test_a_thread_that_does_not_run_its_hub_stops_later(caplog, monkeypatch):
    monkeypatch.setattr("greenws.server.server._THREAD_TIMEOUT", 0.05)
    goes_on = threading.Event()

    def serve(server):
        server.start()
        goes_on.wait(limit(20))
        server.serve_forever()

    with Serving(serve=serve) as serving:
        serving.server.stop()
        assert "does not run its hub" in caplog.text
        monkeypatch.undo()
        goes_on.set()
        serving.thread.join(limit())
        assert not serving.server.started


FORKED = """
import os, signal, sys, threading, gevent
from greenws import Routes, WebSocketServer

server = WebSocketServer(("127.0.0.1", 0), Routes())
started = threading.Event()
def serve():
    server.start()
    started.set()
    server.serve_forever(handle_signals=False)
thread = threading.Thread(target=serve, daemon=True)
thread.start()
started.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    gevent.spawn_later(0.01, server.stop)
    server.serve_forever()  # accepts, until it is stopped
    os._exit(0 if not server.started else 1)
assert os.waitpid(child, 0)[1] == 0
assert server.started
server.stop()
thread.join()
print("stopped", thread.is_alive(), flush=True)
"""


def test_a_forked_child_serves_in_its_own_thread_and_stops():
    with Process("-c", FORKED) as process:
        process.wait_for("stopped False")
        assert process.popen.wait(limit(20)) == 0
    process.assert_no_trouble()


def test_serving_in_another_thread_than_the_one_that_started_is_an_error(serve):
    server = serve(Routes())
    found = []

    def run():
        with pytest.raises(RuntimeError, match="was started in another thread") as caught:
            server.serve_forever()
        found.append(caught)
        gevent.get_hub().destroy()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit())
    assert found and server.started


class Work:
    """Handlers whose progress a test watches and steers."""

    def __init__(self):
        self.go_on = Event()
        self.reached = []
        self.routes = Routes()
        self.routes.websocket("/echo")(self.echo)
        self.routes.websocket("/busy")(self.busy)
        self.routes.websocket("/deaf")(self.deaf)
        self.routes.add(uri="/page", handler=self.page)
        self.routes.add(uri="/late", handler=self.late)

    def echo(self, request, socket):
        for message in socket:
            socket.send(message)

    def busy(self, request, socket):
        self.reached.append("busy")
        list(socket)
        self.go_on.wait(limit())
        self.reached.append("finished")

    def deaf(self, request, socket):
        self.reached.append("deaf")
        try:
            self.go_on.wait(limit())
        except gevent.GreenletExit:
            self.reached.append("killed")
            raise

    def page(self, environ, start_response):
        self.reached.append("page")
        self.go_on.wait(limit())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"]

    def late(self, environ, start_response):
        self.reached.append("late")
        self.go_on.wait(limit())
        environ["wsgi.websocket"].send("hello")
        return []


@pytest.fixture
def work():
    return Work()


def finishing(peer, payload=GOING_AWAY):
    """Reads the Close, and answers it."""
    assert peer.read_frame() == (True, CLOSE, payload)
    peer.send(close_frame(1001))
    assert peer.at_end()
    peer.close()


def get(path="/page"):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_a_thousand_clients_all_get_1001(serve, work):
    # The last one answers after all the others.
    server = serve(work.routes, config=Config(close_timeout=60, ping_interval=None))
    peers = [Peer.open(server.address, "/echo") for _ in range(1000)]
    stopping = gevent.spawn(server.stop, grace=60)
    for peer in peers:
        finishing(peer)
    stopping.get(timeout=limit())
    assert server.stats.closes == {1001: 1000}
    assert server.stats.connections_open == 0


def test_stopping_says_nothing_where_nothing_is_left(serve, work, caplog):
    caplog.set_level(logging.WARNING, "greenws")
    for grace in (0, 0.001, 5):
        server = serve(work.routes)
        with Peer.open(server.address, "/echo") as peer:
            peer.send(frame(TEXT, b"x"))
            assert peer.read_frame() == (True, TEXT, b"x")
        wait_until(lambda server=server: server.admission.open == 0)
        server.stop(grace=grace)
    assert caplog.records == []


def test_a_handler_that_stops_its_server_is_not_counted_as_left(serve, caplog):
    def app(environ, start_response):
        server.stop(grace=0.05)
        start_response("200 OK", [])
        return []

    caplog.set_level(logging.WARNING, "greenws")
    server = serve(app)
    with Peer.connect(server.address) as peer:
        peer.send(get())
        assert peer.read_response().status == 200
    assert caplog.records == []


def test_handlers_may_finish_within_the_grace(serve, work):
    server = serve(work.routes)
    with Peer.open(server.address, "/busy") as peer:
        wait_until(lambda: work.reached)
        stopping = gevent.spawn(server.stop, grace=10)
        finishing_peer = gevent.spawn(finishing, peer)
        stays(lambda: not stopping.ready())
        work.go_on.set()
        stopping.get(timeout=limit(2))
        finishing_peer.get(timeout=limit(2))
    assert work.reached == ["busy", "finished"]


@again_after_standstill(0.2)
def test_what_does_not_end_within_the_grace_is_killed(serve, work, caplog):
    work.reached.clear()
    server = serve(work.routes)
    with Peer.open(server.address, "/deaf") as peer:
        wait_until(lambda: work.reached)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "greenws"):
            server.stop(grace=0.1)
        assert 0.09 < time.monotonic() - began < pace(1)
        assert work.reached == ["deaf", "killed"]
        assert "shutdown_grace" in caplog.text
        assert peer.read_close() == (1001, b"")
    assert server.stats.connections_open == 0


@again_after_standstill(0.2)
def test_the_grace_is_an_option_and_timeout_is_gevents_name_for_it(serve, work):
    server = serve(work.routes, config=Config(shutdown_grace=0.05))
    for stop in (server.stop, lambda: server.stop(timeout=0.05), lambda: server.stop(0.05)):
        work.reached.clear()
        if not server.started:
            server.start()
        with Peer.open(server.address[:1] + (server.server_port,), "/deaf"):
            wait_until(lambda: work.reached)
            began = time.monotonic()
            stop()
            assert time.monotonic() - began < pace(1)


def test_nothing_to_wait_for_is_not_waited_for(serve, work):
    server = serve(work.routes)
    with Peer.connect(server.address) as idle:
        wait_until(lambda: server.admission.open == 1)
        with gevent.Timeout(limit(1)):
            server.stop(grace=10)
        assert idle.at_end()  # a connection that is kept alive for nothing ends with the server


def test_a_request_that_is_being_answered_is_answered_and_the_last(serve, work):
    server = serve(work.routes)
    with Peer.connect(server.address) as peer:
        peer.send(get())
        wait_until(lambda: work.reached)
        stopping = gevent.spawn(server.stop, grace=10)
        wait_until(lambda: server.is_stopping)
        work.go_on.set()
        response = peer.read_response()
        assert (response.status, response.body) == (200, b"page")
        assert response.headers["connection"] == "close"  # so that a proxy does not reuse it
        stopping.get(timeout=limit(2))
        assert peer.at_end()


def test_a_request_sent_while_another_is_being_answered_is_answered_too(serve, work):
    server = serve(work.routes)
    with Peer.connect(server.address) as peer:
        peer.send(get() + get())
        wait_until(lambda: work.reached)
        stopping = gevent.spawn(server.stop, grace=10)
        wait_until(lambda: server.is_stopping)
        work.go_on.set()
        work.go_on.clear()  # whoever waits goes on
        assert peer.read_response().body == b"page"
        wait_until(lambda: len(work.reached) == 2)
        assert not stopping.ready()
        work.go_on.set()
        last = peer.read_response()
        assert (last.body, last.headers["connection"]) == (b"page", "close")
        stopping.get(timeout=limit(2))
        assert peer.at_end()


@again_after_standstill(0.1)
def test_upgrades_on_connections_that_are_kept_alive_are_503(serve, work):
    work.go_on.set()
    server = serve(work.routes)
    with Peer.connect(server.address) as kept, Peer.open(server.address, "/deaf"):
        kept.send(get())
        assert kept.read_response().status == 200
        work.go_on.clear()
        with Peer.open(server.address, "/busy"):
            wait_until(lambda: "busy" in work.reached)
            stopping = gevent.spawn(server.stop, grace=0.3)
            wait_until(lambda: server.is_stopping)
            response = kept.shake("/echo")
            assert response.status == 503
            assert response.headers["connection"] == "close"
            assert kept.at_end()
            stopping.get(timeout=limit(3))
    assert server.stats.refused == {"stopping": 1}


def test_an_upgrade_that_was_pending_is_refused(serve, work, hub_errors):
    server = serve(work.routes)
    with Peer.connect(server.address) as peer:
        peer.send(request("/late"))
        wait_until(lambda: work.reached)
        stopping = gevent.spawn(server.stop, grace=5)
        wait_until(lambda: server.is_stopping)
        work.go_on.set()
        assert peer.read_response().status == 503
        stopping.get(timeout=limit(2))


@again_after_standstill(0.05)
def test_new_connections_are_not_accepted(serve, work):
    server = serve(work.routes)
    with Peer.open(server.address, "/busy"):
        stopping = gevent.spawn(server.stop, grace=0.2)
        wait_until(lambda: server.is_stopping)
        with pytest.raises(ConnectionRefusedError):
            Peer.connect(server.address)
        stopping.get(timeout=limit(2))


def test_all_who_stop_wait_for_the_same_end(serve, work):
    server = serve(work.routes)
    with Peer.open(server.address, "/busy") as peer:
        stops = [gevent.spawn(server.stop, grace=5) for _ in range(3)]
        finishing_peer = gevent.spawn(finishing, peer)
        stays(lambda: not any(stop.ready() for stop in stops))
        work.go_on.set()
        gevent.joinall(stops, timeout=limit(2), raise_error=True)
        assert all(stop.ready() for stop in stops)
        finishing_peer.get()


def test_a_handler_may_stop_its_server(serve):
    routes = Routes()

    @routes.websocket("/stop")
    def stop(request, socket):
        request.environ["stop"]()
        socket.close()

    server = serve(routes, environ={"stop": lambda: server.stop(grace=5)})
    with gevent.Timeout(limit(2)), Peer.open(server.address, "/stop") as peer:
        finishing(peer)


def test_a_stopped_server_can_be_started_again(serve, work):
    server = serve(work.routes)
    server.stop(grace=1)
    server.start()
    with Peer.open(("127.0.0.1", server.server_port), "/echo") as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x")


# -- signals


@pytest.fixture
def process():
    with Process(PROGRAMS / "stopping_server.py") as process:
        yield process.wait_for_port()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_with_1001_lets_finish_and_exits_with_0(process, number):
    peers = [Peer.open(process.address, path) for path in ("/echo", "/echo", "/slow")]
    with Peer.connect(process.address) as page:
        page.send(get())
        process.wait_for("page: begun")
        process.popen.send_signal(number)
        for peer in peers:
            finishing(peer)
        assert page.read_response().body == b"page"
    assert process.popen.wait(limit(10)) == 0
    process.wait_for("slow: finished")
    process.wait_for("behind serve_forever")
    process.assert_no_trouble()


def test_a_handler_that_goes_on_is_ended_after_the_grace(process):
    with Peer.open(process.address, "/deaf") as peer:
        began = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert peer.read_close() == (1001, b"")
        assert process.popen.wait(limit(10)) == 0
        assert 0.9 < time.monotonic() - began < pace(8)
    process.wait_for("deaf: ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(process, number):
    with Peer.open(process.address, "/deaf") as peer:
        process.popen.send_signal(number)
        assert peer.read_frame() == (True, CLOSE, GOING_AWAY)
        process.popen.send_signal(number)
        assert process.popen.wait(limit(1.5)) == -number
