"""Rooms over a real Redis: several brokers in one process, each as if in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import gevent
import pytest
import redis

import greenws
from greenws.brokers import BrokerUnavailable
from greenws.brokers.redis import RedisBroker

from ...support.limits import limit, pace, stays, wait_until
from ...support.processes import Process, connect
from ...support.redis_workers import Worker, away, back, until_all_is_read
from ...support.wire import TEXT


def test_members_of_all_processes_get_the_same_in_the_same_order(worker):
    a, b = worker(), worker()
    clients = [a.join(), a.join(), b.join(), b.join()]
    sent = []
    for number in range(50):
        a.send(text_a := f"a{number}")
        b.send(text_b := f"b{number}")
        sent += [text_a, text_b]
        if number % 10 == 0:
            gevent.sleep(0)
    heard = [client.hear(100) for client in clients]
    assert heard[0] == heard[1] == heard[2] == heard[3]
    assert sorted(heard[0]) == sorted(sent)
    for worker_ in "ab":
        numbers = [int(text[1:]) for text in heard[0] if text[0] == worker_]
        assert numbers == list(range(50))
    assert len({client.last for client in clients}) == 1


def test_a_message_does_not_wait_until_all_rooms_are_open(worker):
    a = worker()
    ann = a.join()
    wait_until(lambda: a.is_idle)
    opened: list[str] = []

    def open_room(name: str) -> None:
        a.broker.open(name)
        opened.append(name)

    names = [f"room {number}" for number in range(1000)]
    opening = [gevent.spawn(open_room, name) for name in names]
    wait_until(lambda: opened)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert len(opened) < 500
    gevent.joinall(opening, raise_error=True)
    for name in names:
        a.broker.close(name)


def test_the_databases_of_a_redis_have_rooms_of_their_own(server, pair, worker):
    a = worker()
    ann = a.join()
    a.send("zero")
    assert ann.hear(1) == ["zero"]
    server.url, url = server.url.replace("/0", "/1"), server.url
    b = worker()
    server.url = url
    bob = b.join()
    a.send("one of a")
    b.send("one of b")
    assert ann.hear(1) == ["one of a"]
    assert bob.hear(1) == ["one of b"]
    assert ann.hears_no_more() and bob.hears_no_more()


def test_text_and_bytes_arrive_as_they_were(worker, pair):
    a, b = worker(), worker()
    b.rooms.stamp = None
    client = b.join()
    a.rooms["r"].send("grün")
    a.rooms["r"].send(b"\x00\xff")
    a.rooms["r"].send("")
    assert client.peer.read_frame() == (True, TEXT, "grün".encode())
    assert client.peer.read_frame() == (True, 2, b"\x00\xff")
    assert client.peer.read_frame() == (True, TEXT, b"")


def test_exclude_holds_in_its_own_process(worker):
    a, b = worker(), worker()
    ann, other, far = a.join(), a.join(), b.join()
    a.rooms["r"].send("x", exclude=ann.member.socket)
    a.send("y")
    assert ann.hear(1) == ["y"]
    assert other.hear(2) == far.hear(2) == ["x", "y"]


def test_one_room_may_be_opened_by_many_at_once(worker):
    a, b = worker(), worker()
    joining = [gevent.spawn(a.join) for _ in range(20)]
    clients = [greenlet.get() for greenlet in joining]
    b.send("hello")
    for client in clients:
        assert client.hear(1) == ["hello"]


def test_two_connections_however_many_rooms(server, worker):
    a = worker()
    for number in range(30):
        a.join(f"room {number}")
        a.join(f"room {number}")
        a.send("hello", room=f"room {number}")
    wait_until(lambda: a.is_idle)
    assert len(server.call("CLIENT", "LIST").splitlines()) == 3  # with the one that asks


def test_what_is_sent_while_a_room_is_opened_arrives_with_what_waited_before(server, worker):
    a, b = worker(), worker()
    a.join("another")
    bob = b.join()
    b.send("start")
    assert bob.hear(1) == ["start"]
    since = bob.last
    wait_until(lambda: a.is_idle)
    eval_ = a.node.process.commands.client.eval
    may_fail = gevent.event.Event()

    def hang(script: str, *args: Any) -> Any:
        if "XADD" in script and not may_fail.is_set():
            may_fail.wait()
            raise redis.TimeoutError("no answer")
        return eval_(script, *args)

    a.node.process.commands.client.eval = hang
    a.send("one", "two")
    wait_until(lambda: a.node.process.commands.turn.locked())
    joining = gevent.spawn(a.join, since=since)
    wait_until(lambda: "r" in a.node._streams)
    a.send("three")
    may_fail.set()
    ann = joining.get(timeout=limit())
    assert ann.member.is_complete
    a.send("four")
    assert ann.hear(4) == bob.hear(4) == ["one", "two", "three", "four"]
    assert ann.hears_no_more()


def test_a_client_comes_back_at_another_process(worker):
    a, b = worker(), worker()
    ann = a.join()
    a.send(*"abc")
    assert ann.hear(2) == ["a", "b"]
    b.send(*"def")
    again = b.join(since=ann.last)
    assert again.member.is_complete
    a.send(*"gh")
    assert sorted(again.hear(6)) == list("cdefgh")
    assert again.hears_no_more()


def test_all_that_was_missed_once_and_in_order_under_load(worker):
    a, b = worker(), worker()
    witness, ann = a.join(), a.join()
    sending = [gevent.spawn(send, each) for each in (a, b)]
    heard = ann.hear(10)
    for each in (b, a, b, a, b):
        ann = each.join(since=ann.last)
        heard += ann.hear(17)
    gevent.joinall(sending)
    ann = a.join(since=ann.last)
    heard += ann.hear(200 - len(heard))
    assert ann.hears_no_more()
    assert heard == witness.hear(200)


def send(each: Worker) -> None:
    for number in range(100):
        each.send(f"{each.node.origin} {number}")
        gevent.sleep(0.001)


def test_a_client_moves_while_redis_is_lost(server, worker):
    """It has received what its old process has not appended yet, and must not receive it again."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    a.send("0")
    assert ann.hear(1) == bob.hear(1) == ["0"]
    away(server, a, b)
    a.send("a1", "a2", "a3")
    assert ann.hear(2) == ["a1", "a2"]
    assert "+" in ann.last
    same = a.join(since=ann.last)  # what it missed is in the tail of its room
    assert same.member.is_complete
    joining = gevent.spawn(b.join, since=ann.last)
    b.send("b1")
    gevent.sleep(0.05)
    back(server, a, b)
    moved = joining.get()
    a.send("a4")
    heard = moved.hear(3)
    assert sorted(heard) == ["a3", "a4", "b1"]
    assert heard.index("a3") < heard.index("a4")
    assert moved.hears_no_more()
    later = a.join(since=ann.last)
    assert sorted(later.hear(3)) == ["a3", "a4", "b1"]
    assert later.hears_no_more()
    assert same.hear(3)[0] == "a3"


def test_keys_expire(server, worker):
    a = worker(max_age=100)
    a.join(name="ann")
    a.send("hello")
    wait_until(lambda: a.is_idle)
    keys = sorted(key.decode() for key in server.call("KEYS", "*"))
    origin = a.node.origin
    names = [f"alive:{origin}", f"from:{origin}", "here:r", "room:r"]
    assert keys == [f"greenws:{name}" for name in names]
    assert all(server.call("TTL", key) > 0 for key in keys)
    assert server.call("TTL", "greenws:room:r") <= 101


def test_nothing_is_pickled(server, worker):
    a = worker()
    a.join(name="ann")
    a.send(json.dumps({"text": "hello"}))
    wait_until(lambda: a.is_idle)
    ((_, message),) = server.call("XRANGE", "greenws:room:r", "-", "+")
    assert message[b"d"] == b'{"text": "hello"}'
    (member,) = (value for key, value in server.call("HGETALL", "greenws:here:r").items() if key)
    assert member.decode() == f'{a.node.origin} {{"name": "ann"}}'


def test_rooms_may_be_closed_while_members_are_there(server, worker, pair):
    a = worker()
    socket, _ = pair()
    with a.rooms["r"].join(socket):
        greenlets = list(a.node._greenlets)
        a.rooms.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            a.send("too late")
    with pytest.raises(BrokerUnavailable, match="closed"):
        a.join()
    assert len(greenlets) == 4 and all(greenlet.dead for greenlet in greenlets)
    assert not a.node._greenlets
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


def test_who_waits_for_redis_when_rooms_are_closed_waits_no_longer(server, worker):
    a = worker(timeout=0.3)
    a.join("other")
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        waiting = [gevent.spawn(a.rooms["r"].history) for _ in range(3)]
        wait_until(lambda: a.node.process.commands.queue.locked())
        a.rooms.close()
        assert [each.get(timeout=limit(2)) for each in waiting] == [[], [], []]
    finally:
        server.send_signal(signal.SIGCONT)
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


def test_stopping_leaves_nothing(server, worker):
    a = worker()
    a.join()
    a.stop()
    a.rooms.close()
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


_PROGRAM = """
from gevent import monkey; monkey.patch_all()
import os, sys, gevent
from greenws import Rooms
rooms = Rooms(sys.argv[1])
"""


def run_program(server: Any, text: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM + text, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit(30),
        text=True,
        check=True,
    ).stdout


def test_a_program_that_ends_has_sent_its_messages(server):
    assert run_program(server, "for n in range(5): rooms['r'].send(str(n))") == ""
    assert server.call("XLEN", "greenws:room:r") == 5


def test_a_program_that_ends_without_redis_says_what_is_lost(server):
    text = "from greenws.brokers.redis import RedisBroker\n"
    text += "rooms = Rooms(RedisBroker('redis://127.0.0.1:1/0', timeout=0.1))\n"
    text += "for n in range(5): rooms['r'].send(str(n))"
    assert "5 messages that waited for Redis are lost" in run_program(server, text)


def test_flush_waits_until_redis_has_all(server, worker):
    a = worker()
    a.join("another")  # or it would learn at its next heartbeat that Redis is lost
    a.send("one", "two")
    assert a.rooms.flush(5)
    assert server.call("XLEN", "greenws:room:r") == 2
    away(server, a)
    a.send("three")
    assert not a.rooms.flush(0.05)
    back(server, a)
    assert a.rooms.flush(5)


def test_flush_does_not_wait_for_what_others_send_meanwhile(worker):
    a = worker()
    a.join()
    wait_until(lambda: a.is_idle)
    eval_, is_over = a.node.process.commands.client.eval, False

    def eval_while_others_send(*args: Any) -> Any:
        if not is_over:
            a.send("more")
        return eval_(*args)

    a.node.process.commands.client.eval = eval_while_others_send
    a.send("first")
    try:
        assert a.rooms.flush(2)
    finally:
        is_over = True
    wait_until(lambda: a.is_idle)


def test_several_threads_may_flush(server, worker):
    a = worker()
    pool = gevent.get_hub().threadpool
    a.join()
    away(server, a)

    def send_and_flush(text: str) -> bool:
        a.send(text)
        return a.rooms.flush(5)

    both = [pool.spawn(send_and_flush, text) for text in "ab"]
    mine = gevent.spawn(send_and_flush, "c")
    wait_until(lambda: a.node._writer.unsent.__len__() == 3)
    back(server, a)
    assert mine.get() and all(each.get() for each in both)


def test_a_program_waits_once_for_redis_however_many_rooms_it_has(server):
    text = "from greenws.brokers.redis import RedisBroker\nimport time, atexit\n"
    text += "many = [Rooms(RedisBroker('redis://127.0.0.1:1/0', timeout=0.5)) for _ in range(8)]\n"
    text += "for each in many: each['r'].send('hello'); gevent.sleep(0.05)\n"
    text += "began = time.monotonic()\n"
    text += "from greenws.rooms.redis import node as module\n"
    text += "module._end_all(); print('took', time.monotonic() - began)\n"
    text += "os._exit(0)"
    output = run_program(server, text)
    assert output.count("1 messages wait for Redis") == 8
    assert float(output.rpartition("took ")[2]) < pace(2)


def test_a_forked_process_starts_again(server):
    text = """
rooms["r"].send("before"); rooms.flush()
child = os.fork()
rooms["r"].send("after"); rooms.flush()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    import gc
    loops = [g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead]
    os._exit(len(loops) != 4)
"""
    run_program(server, text)
    entries = server.call("XRANGE", "greenws:room:r", "-", "+")
    assert len(entries) == 3 and len({fields[b"o"] for _, fields in entries}) == 2


_FORKING = """
from gevent import monkey; monkey.patch_all()
import logging, os, sys, threading, gevent
logging.basicConfig(level="WARNING")

def run_the_hub():
    thread = threading.Thread(target=gevent.sleep, args=(0.02,))
    thread.start()
    thread.join()

os.register_at_fork(after_in_child=run_the_hub)  # before all hooks of greenws

from greenws import Rooms, Routes, WebSocketServer
rooms, routes = Rooms(sys.argv[1]), Routes()

@routes.websocket("/")
def session(request, socket):
    with rooms["r"].join(socket):
        socket.send("joined")
        for message in socket:
            pass

def fork():
    while True:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
server.start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
gevent.spawn(fork)
server.serve_forever()
"""


def test_a_child_whose_hook_runs_the_hub_reads_nothing_of_the_parent_s(server, tmp_path):
    """The connections to Redis live on, so the log has no line."""
    (tmp_path / "forking.py").write_text(_FORKING)
    texts = [str(number) for number in range(200)]
    with (
        greenws.Sender(server.url) as sender,
        Process(tmp_path / "forking.py", server.url) as process,
    ):
        process.wait_for_port()
        with connect(process.url("/")) as client:
            assert client.recv(limit(10)) == "joined"
            for text in texts:
                sender["r"].send(text)
            assert [client.recv(limit(10)) for _ in texts] == texts
    assert len(process.lines) == 1, process.output


def test_who_opens_a_room_and_who_waits_for_that_may_both_be_killed(worker):
    a = worker()
    a.join("another")
    wait_until(lambda: a.is_idle)
    look, blocked = a.node._leases.snapshot, gevent.event.Event()

    def hang(room: str, **options: Any) -> Any:
        blocked.wait()
        return look(room, **options)

    a.node._leases.snapshot = hang
    both = [gevent.spawn(a.broker.open, "r") for _ in range(2)]
    gevent.sleep(0)
    gevent.killall(both)
    assert all(isinstance(each.value, gevent.GreenletExit) for each in both)
    blocked.set()
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]


def test_another_thread_may_be_the_first_to_send(server, worker):
    a = worker()
    gevent.get_hub().threadpool.apply(a.send, ("from a thread",))
    wait_until(lambda: server.call("XLEN", "greenws:room:r") == 1)
    assert a.rooms.flush(5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("history", 0), ("history", 1.5), ("max_pending", 0), ("max_age", 0), ("max_age", 1e16)]
    + [("timeout", 0), ("presence_timeout", "15")],
)
def test_an_option_that_is_no_such_number_is_refused(server, option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        RedisBroker(server.url, **{option: value})


def test_a_process_that_is_forked_while_a_thread_sends_is_not_held_up(server):
    text = """
from gevent.monkey import get_original
held = rooms.lock
start, sleep = get_original("_thread", "start_new_thread"), get_original("time", "sleep")


def hold():
    with held:
        sleep(0.5)
start(hold, ())
sleep(0.1)
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    import signal
    signal.alarm(5)
    rooms["r"].send("hello"); rooms.flush()
    os._exit(0)
"""
    run_program(server, text)
    assert server.call("XLEN", "greenws:room:r") == 1


def test_a_page_that_is_rendered_elsewhere_misses_nothing(worker):
    a, b = worker(), worker()
    ann = a.join()
    a.send("rendered")
    assert ann.hear(1) == ["rendered"]
    position = b.rooms["r"].position
    assert position == ann.last
    a.send("between")
    assert ann.hear(1) == ["between"]
    client = b.join(since=position)
    assert client.hear(1) == ["between"]
    assert client.member.is_complete
    quiet = b.rooms["quiet"].position
    a.send("first", room="quiet")
    a.rooms.flush()
    assert b.join("quiet", since=quiet).hear(1) == ["first"]


def test_a_send_waits_until_the_log_has_the_message(server, worker):
    a = worker()
    a.rooms["r"].send("one", wait=True)
    assert server.call("XLEN", "greenws:room:r") == 1
    server.stop()
    a.send("two")
    sending = gevent.spawn(a.rooms["r"].send, "three", wait=True)
    wait_until(lambda: a.is_lost)
    stays(lambda: not sending.dead)
    server.start()
    sending.get(timeout=limit())
    assert server.call("XLEN", "greenws:room:r") == 3


def test_a_send_that_waits_when_the_rooms_are_closed_says_what_is_unknown(
    server, worker, error_log
):
    a = worker()
    a.rooms["r"].send("one", wait=True)
    server.stop()

    def send() -> None:
        with pytest.raises(BrokerUnavailable, match="closed before .* may have it all the same"):
            a.rooms["r"].send("two", wait=True)

    sending = gevent.spawn(send)
    wait_until(lambda: a.is_lost)
    a.rooms.close(0)
    sending.get(timeout=limit())
    error_log.take()


def test_members_that_return_to_a_quiet_room_cost_redis_only_their_presence(server, worker):
    a, b = worker(), worker()
    ann = a.join()
    a.send("heard")
    assert ann.hear(1) == ["heard"]
    wait_until(lambda: a.is_idle)
    bob = b.join(since=ann.last)
    assert bob.member.is_complete
    until_all_is_read(a, b)
    server.call("CONFIG", "RESETSTAT")
    for _ in range(20):
        assert b.join(since=ann.last).member.is_complete
    wait_until(lambda: b.is_idle)
    commands = server.call("INFO", "commandstats")
    assert not {"cmdstat_xrange", "cmdstat_xread", "cmdstat_xinfo|stream"} & set(commands)
