"""Delivery in slices: the order, who gets what, and that others run in between."""

from __future__ import annotations

import contextlib
import itertools
import select
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import gevent
import pytest
from gevent import socket as gevent_socket

import greenws
from greenws import Rooms, policies
from greenws.brokers.memory import MemoryBroker
from greenws.hub.transport import Transport
from greenws.rooms import fanout, turns
from greenws.websocket import offer_to_all

from ..support.forking import in_child
from ..support.limits import limit, pace, wait_until
from ..support.wire import TEXT, Peer


def stamp(position: str, data: Any) -> str:
    return f"{position} {data}"


answers = itertools.cycle((False, True))  # of turns.is_over()


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is over after a slice or two, and a slice has two members."""
    monkeypatch.setattr(fanout, "_GROUP", 2)
    monkeypatch.setattr(turns, "is_over", lambda: next(answers))
    monkeypatch.setattr(turns, "end_if_over", turns.end)


@pytest.fixture
def join(pair: Any) -> Iterator[Callable[..., tuple[Any, Peer]]]:
    with contextlib.ExitStack() as stack:

        def join(room: Any, **options: Any) -> tuple[Any, Peer]:
            socket, peer = pair()
            return stack.enter_context(room.join(socket, **options)), peer

        yield join


def texts(peer: Peer, count: int) -> list[str]:
    found = []
    for _ in range(count):
        fin, opcode, payload = peer.read_frame()
        assert (fin, opcode) == (True, TEXT)
        found.append(payload.decode())
    return found


def begin(send: Callable[..., None], *args: Any) -> gevent.Greenlet[..., None]:
    """Has a greenlet send, up to the end of its first slice."""
    if turns.end.__name__ == "end":  # no gate is closed: what was left is handed out first
        gevent.sleep(0.01)
    while next(answers) is False:
        pass
    sending = gevent.spawn(send, *args)
    gevent.sleep(0)
    assert not sending.dead
    return sending


def test_others_run_between_the_slices_of_one_message(sliced, join):
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(6)]
    sending = begin(room.send, "hello")
    assert 0 < sum(select.select([peer.sock], [], [], 0)[0] != [] for peer in peers) < 6
    sending.get(timeout=limit())
    assert [texts(peer, 1) for peer in peers] == [["hello"]] * 6


def test_a_message_is_handed_to_all_before_the_next_one_begins(sliced, join):
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(7)]
    sending = [begin(room.send, text) for text in "abc"]
    gevent.joinall(sending, raise_error=True)
    assert [texts(peer, 3) for peer in peers] == [["a", "b", "c"]] * 7


def test_one_that_joins_during_a_fan_out_gets_what_is_sent_later(sliced, join):
    room = Rooms(stamp=stamp)["r"]
    old = [join(room) for _ in range(6)]
    sending = [begin(room.send, text) for text in "ab"]
    member, peer = join(room)
    assert member.position == room._rooms.broker.position("r")
    room.send("c")
    gevent.joinall(sending, raise_error=True)
    assert texts(peer, 1) == texts(old[0][1], 3)[2:]


def test_one_that_comes_back_during_a_fan_out_gets_all_once(sliced, join):
    room = Rooms(stamp=stamp)["r"]
    (first, witness), *_ = [join(room) for _ in range(6)]
    since = first.position
    sending = [begin(room.send, text) for text in "abc"]
    member, peer = join(room, since=since)
    room.send("d")
    gevent.joinall(sending, raise_error=True)
    assert texts(peer, 4) == texts(witness, 4)
    assert member.is_complete
    assert member._is_prompt


def test_one_that_leaves_during_a_fan_out_gets_nothing_more(sliced, join, pair):
    room = Rooms()["r"]
    for _ in range(4):
        join(room)
    socket, peer = pair()
    with room.join(socket):
        sending = begin(room.send, "hello")
    sending.get(timeout=limit())
    assert peer.is_silent(0.01)


@pytest.fixture
def gate(sliced: None, monkeypatch: pytest.MonkeyPatch) -> gevent.event.Event:
    """While it is cleared, no turn ends."""
    gate = gevent.event.Event()
    gate.set()
    monkeypatch.setattr(turns, "end", lambda in_queue=False: gate.wait())
    return gate


def lag(room: Any, join: Any, **options: Any) -> tuple[Any, Peer, int]:
    """A lagging member, and how many messages it has not read."""
    member, peer = join(room, policy=policies.drop_oldest(), **options)
    member.socket._transport._raw.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, 1)
    count = 0
    while not member.is_lagging:
        room.send("." * 5000)
        count += 1
    return member, peer, count


def test_one_that_stops_lagging_during_a_fan_out_gets_all_once(gate, join):
    room = Rooms()["r"]
    quick = [join(room, policy=policies.drop_oldest())[1] for _ in range(3)]
    slow, peer, count = lag(room, join)
    gate.clear()
    sending = begin(room.send, "during")
    assert len(texts(peer, count)) == count
    wait_until(lambda: not slow.is_lagging)
    gate.set()
    sending.get(timeout=limit())
    room.send("after")
    assert texts(peer, 2) == ["during", "after"]
    for each in quick:
        assert texts(each, count + 2)[count:] == ["during", "after"]
    assert slow._is_prompt


def test_a_lagging_member_that_leaves_during_a_fan_out_gets_nothing_more(gate, join, pair):
    rooms = Rooms()
    room = rooms["r"]
    for _ in range(3):
        join(room, policy=policies.drop_oldest())
    with contextlib.ExitStack() as stack:
        slow, _, _ = lag(room, lambda room, **each: (stack.enter_context(
            room.join(pair()[0], **each)), None))  # fmt: skip
        gate.clear()
        sending = begin(room.send, "during")
    gate.set()
    sending.get(timeout=limit())
    assert (slow.waiting, rooms.stats.lagging, rooms.stats.members) == (0, 0, 3)


def test_the_position_of_a_member_is_that_of_what_it_has_got(sliced, join):
    room = Rooms(stamp=stamp)["r"]
    members = [join(room) for _ in range(6)]
    before = members[0][0].position
    sending = begin(room.send, "hello")
    after = room._rooms.broker.position("r")
    for member, peer in members:
        assert member.position == (before if peer.is_silent(0.0) else after)
    sending.get(timeout=limit())
    assert {member.position for member, _ in members} == {after}


def test_a_sender_that_is_killed_during_a_fan_out_takes_nothing_from_anybody(sliced, join):
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(6)]
    begin(room.send, "hello").kill()
    assert [texts(peer, 1) for peer in peers] == [["hello"]] * 6
    room.send("again")
    assert [texts(peer, 1) for peer in peers] == [["again"]] * 6


def test_a_callback_of_the_hub_may_send(sliced, join):
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(6)]
    for text in "ab":
        gevent.get_hub().loop.run_callback(room.send, text)
    assert [texts(peer, 2) for peer in peers] == [["a", "b"]] * 6


def test_a_child_that_is_forked_during_a_fan_out_may_send(sliced, join):
    room = Rooms()["r"]
    for _ in range(8):
        join(room)
    sending = begin(room.send, "one")
    assert room._fan_out._pump
    in_child(lambda: room.send("two"), hub_runs=False)
    sending.get(timeout=limit())


def test_threads_with_and_without_a_hub_may_send(sliced, join):
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(5)]

    def send(name: str) -> None:
        if name == "hub":
            gevent.sleep(0)
        for number in range(20):
            room.send(f"{name} {number}")

    threads = [threading.Thread(target=send, args=(name,)) for name in ("hub", "none")]
    for thread in threads:
        thread.start()
    send("here")
    heard = [texts(peer, 60) for peer in peers]
    for thread in threads:
        thread.join()
    assert all(each == heard[0] for each in heard)
    for name in ("hub", "none", "here"):
        own = [text for text in heard[0] if text.startswith(name)]
        assert own == [f"{name} {number}" for number in range(20)]


def test_a_sender_takes_over_from_a_thread_whose_hub_stopped(sliced, join):
    """A thread has handed out a first slice, and its hub never runs again."""
    room = Rooms()["r"]
    peers = [join(room)[1] for _ in range(6)]
    gevent.sleep(0.01)

    def send() -> None:
        gevent.get_hub()
        while next(answers) is False:
            pass
        with room._lock:
            room._rooms.broker.publish("r", "first")

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert room._fan_out._pump not in (0, threading.get_ident())
    room.send("second")
    assert [texts(peer, 2) for peer in peers] == [["first", "second"]] * 6


@pytest.mark.parametrize("where", ["presence", "stamp"])
def test_what_a_function_of_the_application_sends_comes_next(join, where):
    sent: list[str] = []

    def tell(kind: str, info: dict[str, Any]) -> str:
        if where == "presence":
            room.send("from inside")
        return kind

    def answer(position: str, data: Any) -> Any:
        if where == "stamp" and data == "join" and not sent:
            sent.append(data)
            room.send("from inside")
        return data

    room = Rooms(stamp=answer)["r"]
    _, peer = join(room, presence=tell)
    join(room)
    room.send("later")
    assert texts(peer, 3) == ["join", "from inside", "later"]


def test_watchers_get_changes_of_presence_in_slices(sliced, join, pair):
    room = Rooms()["r"]
    peers = [join(room, presence=lambda kind, info: kind)[1] for _ in range(5)]
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    socket, _ = pair()
    with room.join(socket, name="Ann"):
        late = join(room, presence=lambda kind, info: f"late {kind}")[1]
    for peer in peers:
        last = ""
        while not last.startswith("leave"):
            last = texts(peer, 1)[0]
    assert texts(late, 1) == ["late leave"]


def test_a_loop_that_sends_lets_others_run(join):
    room = Rooms()["r"]
    _, peer = join(room, policy=policies.drop_oldest())
    ticks: list[float] = []

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks.append(time.monotonic())

    ticking = gevent.spawn(tick)
    gevent.sleep(0.005)
    ticks.clear()
    # Of CPU time: on a busy machine this process might not run for longer.
    end = time.process_time() + 0.2
    while time.process_time() < end:
        room.send("x")
    ticking.kill()
    assert len(ticks) > 10


def test_a_batch_to_a_large_room_holds_up_nobody_for_long(serve):
    """The issue's case, smaller: it took a second for others to get their turn."""
    room = Rooms()["r"]
    pauses: list[float] = []
    sockets = []
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            ours, theirs = gevent_socket.socketpair()
            sockets.append(theirs)
            config = greenws.Config()
            socket = greenws.WebSocket(Transport(ours, gevent.get_hub(), None, None), config)
            stack.callback(socket._abandon, 1001)
            stack.enter_context(room.join(socket))

        def watch() -> None:
            last = time.process_time()
            while True:
                gevent.sleep(0.0001)
                pauses.append(time.process_time() - last)
                last += pauses[-1]

        watching = gevent.spawn(watch)
        gevent.sleep(0.01)
        pauses.clear()
        gevent.joinall([gevent.spawn(room.send, "x" * 100) for _ in range(100)])
        watching.kill()
        for each in sockets:
            each.close()
    # Of CPU time, so that neighbours on the machine make no difference.
    assert sum(pauses) > 0.05
    assert max(pauses) < pace(0.05)


@pytest.mark.parametrize("seed", range(8))
def test_each_gets_all_once_and_in_order_whatever_happens_between_slices(sliced, pair, seed):
    """Members join, leave, come back, lag and watch presence, while several send."""
    random = Random(seed)
    room = Rooms(MemoryBroker(history=120), stamp=stamp)["r"]  # a client may be away for long
    ids: dict[str, str] = {}  # of the messages, by their text
    sent: list[str] = []
    is_over = gevent.event.Event()

    def send(name: int) -> None:
        for number in range(40):
            text = f"{name}.{number}"
            room.send(text)
            sent.append(text)
            gevent.sleep(random.choice((0, 0, 0.001)))

    def live(results: list[list[str]]) -> None:
        """A client that breaks off and comes back."""
        heard: list[str] = []
        since = None
        while True:
            socket, peer = pair()
            if random.random() < 0.3:
                raw = socket._transport._raw
                raw.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, 1)
            presence = random.choice((None, lambda kind, info: kind))
            last = is_over.is_set()
            visiting = gevent.spawn(visit, socket, since, presence, last)
            deadline = time.monotonic() + random.uniform(0, pace(0.02))
            while last or time.monotonic() < deadline:
                peer.sock.settimeout(pace(0.3 if last else 0.02))
                try:
                    position, text = peer.read_frame()[2].decode().split(" ", 1)
                except TimeoutError:
                    if last:
                        break
                    continue
                if text not in ("join", "leave"):
                    heard.append(text)
                    assert ids.setdefault(text, position) == position
                    since = position
                elif since is not None:
                    since = position
            peer.sock.settimeout(None)
            visiting.kill()
            if since is None:
                since = visiting.value if isinstance(visiting.value, str) else None
            if last:
                results.append(heard)
                return

    def visit(socket: Any, since: str | None, presence: Any, last: bool) -> None:
        with room.join(socket, since=since, gap="0-0 gap", presence=presence):
            gevent.sleep(60)

    results: list[list[str]] = []
    clients = [gevent.spawn(live, results) for _ in range(9)]
    gevent.sleep(0.005)
    senders = [gevent.spawn(send, name) for name in range(3)]
    gevent.joinall(senders, raise_error=True)
    is_over.set()
    gevent.joinall(clients, raise_error=True)
    order = sorted(ids, key=lambda text: int(ids[text].partition("-")[2]))
    # On a slow machine a client may never have been there while something was said.
    assert sum(map(bool, results)) >= len(results) / 2
    for heard in filter(None, results):
        assert heard == order[order.index(heard[0]) :]


def test_one_that_comes_back_during_a_fan_out_gets_the_tail_and_then_the_rest(gate, join):
    room = Rooms(stamp=stamp)["r"]
    (first, witness), *_ = [join(room) for _ in range(6)]
    since = first.position
    room.send("a")
    gate.clear()
    sending = [begin(room.send, text) for text in "bcd"]
    joining = gevent.spawn(join, room, since=since)
    gevent.sleep(0.01)
    gate.set()
    gevent.joinall(sending, raise_error=True)
    member, peer = joining.get(timeout=limit())
    room.send("e")
    assert texts(peer, 5) == texts(witness, 5)
    assert member._is_prompt


def tell(kind: str, id_: str, info: dict[str, Any]) -> str:
    return f"{kind} {info.get('name')}"


def test_one_that_comes_back_gets_no_joins_of_those_that_it_found(gate, join, pair):
    """A change waits in the queue, and a member that joins now knows of it."""
    room = Rooms()["r"]
    members = [join(room) for _ in range(20)]
    since = members[0][0].position
    gate.clear()
    sending = begin(room.send, "a")
    with room.join(pair()[0], name="Ann"):
        assert room._fan_out._items  # the change has not begun
        joining = gevent.spawn(join, room, since=since, presence=tell)
        gevent.sleep(0.01)
    gate.set()
    sending.get(timeout=limit())
    member, peer = joining.get(timeout=limit())
    assert {each.info.get("name") for each in member.present} == {None, "Ann"}
    room.send("b")
    assert texts(peer, 3) == ["a", "leave Ann", "b"]


def test_one_that_comes_back_is_not_closed_by_an_older_disconnect(gate, join):
    room = Rooms()["r"]
    members = [join(room) for _ in range(20)]
    since = members[0][0].position
    gate.clear()
    sending = begin(room.send, "a")
    room.disconnect(4001)
    assert room._fan_out._items  # it has not begun
    joining = gevent.spawn(join, room, since=since)
    gevent.sleep(0.01)
    gate.set()
    sending.get(timeout=limit())
    _, peer = joining.get(timeout=limit())
    room.send("b")
    assert texts(peer, 2) == ["a", "b"]
    assert members[0][1].read_frame()[2] == b"a"
    assert members[0][1].read_frame()[1] == 8


def test_watchers_get_many_joins_in_one_batch(join, monkeypatch):
    room = Rooms()["r"]
    old = [join(room, presence=tell, name=f"old {number}") for number in range(20)]
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    for number, (_, peer) in enumerate(old):
        assert texts(peer, 19 - number) == [f"join old {each}" for each in range(number + 1, 20)]
    sent: list[int] = []

    def count(group: Any, message: Any, *options: Any) -> Any:
        sent.append(message.count)
        return offer_to_all(group, message, *options)

    monkeypatch.setattr(fanout, "offer_to_all", count)
    new = [join(room, presence=tell, name=f"new {number}") for number in range(10)]
    room.send("after")
    assert sent == [10, *range(9, 0, -1), 1]  # the old ones, each of the new ones, and the message
    for _, peer in old:
        assert texts(peer, 11) == [*(f"join new {number}" for number in range(10)), "after"]
    for number, (member, peer) in enumerate(new):
        assert len(member.present) == 21 + number
        names = [f"join new {each}" for each in range(number + 1, 10)]
        assert texts(peer, 10 - number) == [*names, "after"]
    assert old[0][0].socket.traffic.messages_out == 19 + 11


def test_a_lagging_watcher_gets_a_batch_of_changes_in_its_queue(join):
    room = Rooms()["r"]
    for _ in range(20):
        join(room, presence=tell)
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    _, peer, count = lag(room, join, presence=tell)
    for number in range(3):
        join(room, name=f"new {number}")
    room.send("after")
    texts(peer, count)
    assert texts(peer, 4) == ["join new 0", "join new 1", "join new 2", "after"]


def test_watchers_that_are_sent_nothing_are_visited_in_slices(join, monkeypatch):
    """Each joined at another time, so each is sent other changes."""
    monkeypatch.setattr(fanout, "_GROUP", 8)
    room = Rooms()["r"]

    def quiet(kind: str, id: str, info: dict[str, Any]) -> None:
        return None

    for _ in range(20):
        join(room, presence=quiet)
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    for _ in range(60):
        join(room, presence=quiet)
    changes = list(room._fan_out._items)
    assert len(changes) == 60
    slices = sum(1 for _ in room._fan_out._report(changes))
    assert slices >= 80 // 8 + 60 // 16
