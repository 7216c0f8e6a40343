"""Rooms of one process: order, presence, members that lag, members that come back."""

from __future__ import annotations

import contextlib
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import create_autospec

import gevent
import gevent.event
import pytest
from gevent import socket as gevent_socket
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import greenws
from greenws import Rooms, WebSocket, policies
from greenws.brokers.memory import MemoryBroker
from greenws.hub.transport import Transport
from greenws.protocol.shared import SharedMessage
from greenws.rooms import json_id
from greenws.rooms.broker import Cursor, Entry, Page, Replay
from greenws.rooms.presence import Presence

from ..support.examples import examples
from ..support.forking import in_child
from ..support.limits import limit, stays, wait_until
from ..support.wire import BINARY, CLOSE, CONTINUATION, TEXT, Peer, close_frame, frame

TOO_SLOW = (True, CLOSE, b"\x03\xf5You read too slowly.")


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
def join(pair) -> Iterator[Callable[..., tuple[Any, Peer]]]:
    """``join(room, **options)`` gives a new member and the peer at its other end."""
    with contextlib.ExitStack() as stack:

        def join(room: Any, **options: Any) -> tuple[Any, Peer]:
            socket, peer = pair()
            # Small buffers: a peer that does not read is noticed soon.
            socket._transport._raw.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, 1)
            member = stack.enter_context(room.join(socket, **options))
            return member, peer

        yield join


def read(peer: Peer, count: int) -> list[str]:
    frames = [peer.read_frame() for _ in range(count)]
    assert {(fin, opcode) for fin, opcode, _ in frames} <= {(True, TEXT)}
    return [payload.decode() for _, _, payload in frames]


def fill(room: Any, prefix: str = "", count: int = 100, size: int = 5000) -> list[str]:
    """Sends more than a peer's buffers take, and returns it."""
    sent = [f"{prefix}{number} ".ljust(size, ".") for number in range(count)]
    for text in sent:
        room.send(text)
    return sent


def test_all_members_get_what_is_sent(rooms, join):
    room = rooms["lobby"]
    peers = [join(room)[1] for _ in range(3)]
    _, stranger = join(rooms["elsewhere"])
    room.send("hello")
    room.send(bytearray(b"\x00\xff"))
    for peer in peers:
        assert peer.read_frame() == (True, TEXT, b"hello")
        assert peer.read_frame() == (True, BINARY, b"\x00\xff")
    assert stranger.is_silent()
    assert (rooms.stats.sent, rooms.stats.delivered) == (2, 6)


def test_one_may_be_excluded(rooms, join):
    room = rooms["lobby"]
    (ann, peer), (_, other) = join(room), join(room)
    room.send("to the others", exclude=ann.socket)
    room.send("to all")
    assert read(peer, 1) == ["to all"]
    assert read(other, 2) == ["to the others", "to all"]


def test_a_member_may_be_excluded_as_well_as_its_socket(rooms, join):
    room = rooms["lobby"]
    (ann, peer), (_, other) = join(room), join(room)
    room.send("to the others", exclude=ann)
    room.send("to all")
    assert read(peer, 1) == ["to all"]
    assert read(other, 2) == ["to the others", "to all"]


@pytest.mark.parametrize("exclude", ["ann", 0, False, object()])
def test_what_cannot_be_excluded(rooms, exclude):
    with pytest.raises(TypeError, match="exclude must be a member or its socket, not"):
        rooms["lobby"].send("hello", exclude=exclude)


@pytest.mark.parametrize("policy", [policies.close, "close", 0])
def test_what_is_no_policy(rooms, pair, policy):
    with pytest.raises(TypeError, match=r"policies.close\(\), called"):
        Rooms(policy=policy)
    with pytest.raises(TypeError, match=r"policies.close\(\), called"):
        with rooms["lobby"].join(pair()[0], policy=policy):
            pass
    assert len(rooms) == 0


@pytest.mark.parametrize("broker", [5, MemoryBroker, b"redis://localhost"])
def test_what_is_no_broker(broker):
    with pytest.raises(TypeError, match="None, the URL of a Redis such as .* or a Broker, not"):
        Rooms(broker)


def test_what_is_no_function(rooms, pair):
    with pytest.raises(TypeError, match="stamp is a function of an id and data, .* not 'x'"):
        Rooms(stamp="x")
    with pytest.raises(TypeError, match="presence must be a function .* not 'x'"):
        with rooms["lobby"].join(pair()[0], presence="x"):
            pass
    with pytest.raises(TypeError, match=r"three arguments, .* and .*lambda\(kind\) does not"):
        with rooms["lobby"].join(pair()[0], presence=lambda kind: ""):
            pass


@pytest.mark.parametrize("data", [None, 7, ["x"], object()])
def test_what_cannot_be_sent(rooms, data):
    with pytest.raises(TypeError):
        rooms["lobby"].send(data)


def test_text_that_utf_8_does_not_know_is_refused(rooms, join):
    _, peer = join(rooms["lobby"])
    with pytest.raises(UnicodeEncodeError):
        rooms["lobby"].send("half \ud83c of it")
    with pytest.raises(UnicodeEncodeError):
        rooms["half \ud83c of it"]
    rooms["lobby"].send("whole")
    assert read(peer, 1) == ["whole"]


def test_presence(rooms, pair):
    room = rooms["lobby"]
    (ann, _), (bob, _) = pair(), pair()
    assert (len(room), room.members) == (0, [])
    with room.join(ann, name="Ann", level=3):
        with room.join(bob, name="Bob"):
            assert [member.info for member in room.members] == [
                {"name": "Ann", "level": 3},
                {"name": "Bob"},
            ]
            assert len({member.id for member in room.members}) == len(room) == 2
        assert [member.info["name"] for member in room.members] == ["Ann"]
    assert (len(room), room.members) == (0, [])


def test_info_is_what_json_can_hold(rooms, pair):
    with pytest.raises(TypeError, match="JSON"):
        with rooms["lobby"].join(pair()[0], socket_of=object()):
            pass
    assert len(rooms) == 0


def test_an_error_in_presence_concerns_only_its_member(rooms, join, pair, error_log):
    room = rooms["lobby"]
    _, bad = join(room, presence=lambda kind, info: {"Bob": None}[info["name"]])
    _, good = join(room, presence=lambda kind, info: f"{kind} {info['name']}", name="Bob")
    with room.join(pair()[0], name="Carl"):
        room.send("hello")
    assert read(good, 3) == ["join Carl", "hello", "leave Carl"]
    assert read(bad, 1) == ["hello"]
    said = [record.getMessage() for record in error_log.take()]
    assert said == ["presence= of a member of the room 'lobby' failed"] * 2


def test_an_error_in_the_policy_of_one_takes_nothing_from_the_others(rooms, join, error_log):
    class Broken(policies.Policy):
        def put(self, queue: Any, message: Any, data: Any) -> int:
            raise RuntimeError("a bug")

    room = rooms["lobby"]
    _, broken = join(room, policy=Broken())
    _, good = join(room, policy=policies.close(limit=1000))
    sent = fill(room)
    assert read(good, 100) == sent
    frames = iter(broken.read_frame, (True, CLOSE, b"\x03\xf3"))
    got = [payload.decode() for _, _, payload in frames]
    assert got == sent[: len(got)]
    assert (rooms.stats.closed, len(room)) == (0, 2)
    (record,) = error_log.take()
    assert "a bug" in str(record.exc_info)


def test_members_with_presence_get_joins_and_leaves(rooms, join, pair):
    def tell(kind: str, info: dict[str, Any]) -> str | None:
        return None if info.get("quiet") else f"{kind} {info['name']}"

    room = rooms["lobby"]
    _, asks = join(room, presence=tell, name="Ann")
    _, does_not = join(room, name="Bob")
    with room.join(pair()[0], name="Carl"), room.join(pair()[0], name="Dora", quiet=True):
        room.send("hello")
    assert read(asks, 4) == ["join Bob", "join Carl", "hello", "leave Carl"]
    assert read(does_not, 1) == ["hello"]


def test_a_handler_that_fails_leaves(rooms, pair):
    room = rooms["lobby"]
    with pytest.raises(KeyError):
        with room.join(pair()[0]):
            raise KeyError
    assert (len(room), len(rooms), rooms.stats.members) == (0, 0, 0)


def test_an_empty_room_costs_nothing(pair):
    rooms = Rooms(MemoryBroker(history=0))
    with rooms["lobby"].join(pair()[0]):
        assert [room.name for room in rooms] == ["lobby"]
    for number in range(100):
        rooms[f"room {number}"].send("nobody hears it")
    gc.collect()
    assert (len(rooms), len(rooms._known), rooms.broker._logs, rooms.broker._opened) == (
        0,
        0,
        {},
        {},
    )


def test_a_room_is_the_same_while_somebody_holds_it(rooms, pair):
    room = rooms["lobby"]
    assert rooms["lobby"] is room
    with room.join(pair()[0]):
        ghost = weakref.ref(room)
        del room
        gc.collect()
        assert rooms["lobby"] is ghost()
    with pytest.raises(TypeError, match="a room name must be a str"):
        rooms[7]


def test_one_socket_in_two_rooms(rooms, pair):
    socket, peer = pair()
    with rooms["a"].join(socket), rooms["b"].join(socket):
        rooms["a"].send("of a")
        rooms["b"].send("of b")
        rooms["a"].send("of a again")
        assert read(peer, 3) == ["of a", "of b", "of a again"]


def test_a_handler_that_only_reads_gets_the_messages_of_its_room(rooms, serve):
    routes = greenws.Routes()

    @routes.websocket("/<room>")
    def chat(request, socket, room):
        with rooms[room].join(socket):
            for message in socket:
                rooms[room].send(message)

    server = serve(routes)
    peers = [Peer.open(server.address, "/lobby") for _ in range(3)]
    wait_until(lambda: len(rooms["lobby"]) == 3)
    for number, peer in enumerate(peers):
        peer.send(frame(TEXT, b"from %d" % number))
        for other in peers:
            assert read(other, 1) == [f"from {number}"]
    for peer in peers:
        peer.send(close_frame(1000))
        assert peer.read_close() == (1000, b"")
        peer.close()
    wait_until(lambda: len(rooms) == 0)


# -- members that lag


def test_a_member_that_never_reads_is_closed_and_holds_up_nobody(rooms, join):
    room = rooms["lobby"]
    _, quick = join(room)
    slow, never = join(room, policy=policies.close(limit=20))
    sent = []
    for number in range(10):
        sent += (texts := fill(room, f"{number}: ", 10))
        assert read(quick, 10) == texts
    assert rooms.stats.closed == 1
    assert not slow.socket.is_connected
    taken = []
    while (got := never.read_frame())[1] == TEXT:
        taken.append(got[2].decode())
    assert got == TOO_SLOW
    assert taken == sent[: len(taken)]
    assert len(taken) < 100


def test_only_a_member_that_lags_has_a_queue(rooms, join):
    room = rooms["lobby"]
    (quick, peer), (slow, late) = join(room), join(room)
    sent = []
    for number in range(10):
        sent += fill(room, str(number), 10)
        read(peer, 10)
    assert quick._queue is None
    assert slow._queue
    assert rooms.stats.lagging == 1
    assert room.lagging == [slow]
    assert (quick.waiting, slow.waiting) == (0, len(slow._queue))
    assert read(late, 100) == sent
    wait_until(lambda: slow._queue is None)
    assert rooms.stats.lagging == 0
    assert (room.lagging, slow.waiting) == ([], 0)
    room.send("again")
    assert read(late, 1) == ["again"]


def test_drop_oldest(join):
    rooms = Rooms(policy=policies.drop_oldest(limit=10))
    room = rooms["lobby"]
    _, peer = join(room)
    sent = fill(room)
    dropped = rooms.stats.dropped
    assert dropped > 10
    assert read(peer, 100 - dropped) == sent[: 90 - dropped] + sent[90:]


def test_coalesce(join):
    rooms = Rooms()
    room = rooms["ticker"]
    _, peer = join(room, policy=policies.coalesce(lambda text: text[:4]))
    for number in range(50):
        for name in ("acme", "bird"):
            room.send(f"{name} {number} ".ljust(5000, "."))
    got = [text.rstrip(".").split() for text in read(peer, 100 - rooms.stats.dropped)]
    assert got[-2:] == [["acme", "49"], ["bird", "49"]]
    for name in ("acme", "bird"):
        numbers = [int(number) for who, number in got if who == name]
        assert numbers == sorted(set(numbers))
    assert rooms.stats.dropped > 20


def test_block_holds_up_who_sends_until_there_is_room(rooms, join):
    room = rooms["lobby"]
    _, peer = join(room, policy=policies.block(timeout=5, limit=5))
    sending = gevent.spawn(fill, room)
    stays(lambda: not sending.ready())
    got = read(peer, 100)
    assert sending.get() == got
    assert (rooms.stats.closed, rooms.stats.dropped) == (0, 0)


def test_block_closes_who_makes_no_room(rooms, join):
    room = rooms["lobby"]
    _, other = join(room)
    join(room, policy=policies.block(timeout=0.05, limit=5))
    reading = gevent.spawn(read, other, 100)
    assert fill(room) == reading.get()
    assert rooms.stats.closed == 1


def test_a_member_for_which_too_many_bytes_wait_is_closed(rooms, join):
    room = rooms["lobby"]
    _, never = join(room, policy=policies.close(limit_bytes=100_000))
    fill(room, count=60, size=5000)
    assert rooms.stats.closed == 1


def test_a_member_that_vanishes_while_it_lags(rooms, join):
    room = rooms["lobby"]
    member, peer = join(room)
    fill(room, count=200)
    assert member._queue
    peer.reset()
    wait_until(lambda: member._queue is None)
    room.send("to nobody")


def test_a_member_that_leaves_while_it_lags(rooms, pair):
    socket, peer = pair()
    with rooms["lobby"].join(socket) as member:
        fill(rooms["lobby"], count=500)
        assert member._queue
    assert member._queue is None
    assert rooms.stats.lagging == 0


def test_a_fragmented_message_is_finished_first(rooms, join):
    room = rooms["lobby"]
    (member, peer), (_, other) = join(room), join(room)
    member.socket.send_string_message("one ", final=False)
    room.send("of the room")
    room.send("and another")
    assert read(other, 2) == ["of the room", "and another"]
    member.socket.send_string_message("message")
    gevent.sleep(0)
    assert peer.read_frame() == (False, TEXT, b"one ")
    assert peer.read_frame() == (True, CONTINUATION, b"message")
    assert read(peer, 2) == ["of the room", "and another"]


def test_members_that_close_during_a_fan_out_are_passed_over(rooms, join):
    room = rooms["lobby"]
    (_, gone), (closing, peer), (_, last) = join(room), join(room), join(room)
    gone.reset()
    closing.socket.start_closing(4000)
    room.send("hello")
    assert read(last, 1) == ["hello"]
    assert peer.read_frame() == (True, CLOSE, b"\x0f\xa0")


def test_what_was_held_back_goes_first(rooms, serve):
    """A handler that answers a pipeline corks; the room's message is not sent before that."""
    routes = greenws.Routes()

    @routes.websocket("/")
    def session(request, socket):
        with rooms["lobby"].join(socket):
            for message in socket:
                socket.send(f"{message} mine")
                rooms["lobby"].send(f"{message} ours")

    with Peer.open(serve(routes).address, "/") as peer:
        peer.send(b"".join(frame(TEXT, b"%d" % number) for number in range(20)))
        assert read(peer, 40) == [f"{n} {whose}" for n in range(20) for whose in ("mine", "ours")]
        peer.send(close_frame())
        peer.read_close()


# -- other threads


def test_what_a_thread_sends_while_a_room_is_being_opened_is_not_lost(pair):
    class Interrupted(MemoryBroker):
        def open(self, room: str) -> None:
            super().open(room)
            thread = threading.Thread(target=rooms[room].send, args=("meanwhile",))
            thread.start()
            thread.join()

    rooms = Rooms(Interrupted())
    socket, peer = pair()
    with rooms["lobby"].join(socket, since=rooms.broker.position("lobby")) as member:
        assert member.is_complete
        rooms["lobby"].send("then")
        assert read(peer, 2) == ["meanwhile", "then"]


@pytest.mark.parametrize(
    "kinds",
    [
        [policies.close(), policies.close(), policies.close()],
        [policies.close(limit=5), policies.close(limit=5), policies.drop_oldest(limit=5)],
    ],
)
def test_all_get_what_other_threads_send_in_one_order_and_it_is_no_lag(rooms, pair, kinds):
    room = rooms["lobby"]

    def send(name: str) -> None:
        for number in range(50):
            room.send(f"{name} {number}")

    threads = [threading.Thread(target=send, args=(name,)) for name in "abc"]
    with contextlib.ExitStack() as stack:
        peers = []
        for policy in kinds:
            socket, peer = pair()  # with buffers that take all this
            stack.enter_context(room.join(socket, policy=policy))
            peers.append(peer)
        for thread in threads:
            thread.start()
        heard = [read(peer, 150) for peer in peers]
        for thread in threads:
            thread.join()
    assert heard[0] == heard[1] == heard[2]
    for name in "abc":
        assert [text for text in heard[0] if text[0] == name] == [f"{name} {n}" for n in range(50)]
    stats = rooms.stats
    assert (stats.closed, stats.dropped, stats.lagging) == (0, 0, 0)
    assert not room._fan_out.is_held_up


def test_a_member_that_never_reads_is_closed_though_another_thread_sends(join):
    rooms = Rooms(policy=policies.close(limit=5))
    member, _ = join(rooms["lobby"])
    thread = threading.Thread(target=fill, args=(rooms["lobby"],), kwargs={"count": 200})
    thread.start()
    wait_until(lambda: not thread.is_alive())
    wait_until(lambda: not member.socket.is_connected)
    assert (rooms.stats.closed, rooms.stats.lagging) == (1, 0)


def test_a_thread_for_which_the_hub_waits_is_not_held_up_for_ever(rooms, join, monkeypatch):
    monkeypatch.setattr(greenws.rooms.member, "UNFLUSHED_TIMEOUT", 0.05)
    room = rooms["lobby"]
    _, closed = join(room, policy=policies.close(limit=5))
    _, dropping = join(room, policy=policies.drop_oldest(limit=5))
    thread = threading.Thread(target=fill, args=(room, "", 20, 1))
    thread.start()
    thread.join(limit())  # the hub hangs
    assert not thread.is_alive()
    assert rooms.stats.closed == 1
    assert closed.read_frame() == TOO_SLOW
    assert read(dropping, 5) == [f"{number} " for number in range(15, 20)]


def test_a_greenlet_does_not_wait_for_what_a_thread_has_sent(rooms, pair, monkeypatch):
    monkeypatch.setattr("greenws.rooms.turns.SECONDS", 60)  # a turn may end anywhere else
    room = rooms["lobby"]
    socket, peer = pair()
    with room.join(socket, policy=policies.close(limit=5)):
        thread = threading.Thread(target=fill, args=(room, "t", 5, 1))
        thread.start()
        thread.join()
        turns: list[None] = []
        gevent.get_hub().loop.run_callback(turns.append, None)
        sent = fill(room, count=50, size=1)
        assert turns == []
        assert read(peer, 55) == [f"t{number} " for number in range(5)] + sent


def test_nothing_is_sent_from_another_thread_than_the_session_s(pair):
    socket, peer = pair()
    message, taken = SharedMessage("hello"), []
    thread = threading.Thread(target=lambda: taken.append(socket._offer(message)))
    thread.start()
    thread.join()
    assert taken == [False]
    assert peer.is_silent(0.01)
    ready = gevent.event.Event()
    thread = threading.Thread(target=socket._when_ready, args=(ready.set,))
    thread.start()
    assert ready.wait(limit())
    thread.join()
    assert socket._offer(message)
    assert read(peer, 1) == ["hello"]


def test_members_of_other_threads(rooms):
    """As under gunicorn's gthread worker: each session has a thread, and a hub of its own."""
    room = rooms["lobby"]
    heard: dict[int, list[str]] = {}

    def session(number: int) -> None:
        ours, theirs = gevent_socket.socketpair()
        socket = greenws.WebSocket(Transport(ours, gevent.get_hub(), None, None), greenws.Config())
        with Peer(theirs, limit(10)) as peer:
            with room.join(socket):
                ready.wait()
                room.send(f"from {number}")
                heard[number] = read(peer, 4)
        socket._abandon(1000)
        gevent.get_hub().destroy()

    ready = threading.Barrier(4)
    threads = [threading.Thread(target=session, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit(10))
    assert sorted(heard[0]) == [f"from {number}" for number in range(4)]
    assert heard[0] == heard[1] == heard[2] == heard[3]
    assert len(room) == 0


# -- members that come back


def test_ids_reach_the_client_through_a_stamp(join):
    rooms = Rooms(stamp=json_id)
    member, peer = join(rooms["lobby"])
    start = member.position
    rooms["lobby"].send('{"text": "hello"}')
    rooms["lobby"].send("{}")
    first, second = (json.loads(text) for text in read(peer, 2))
    assert first == {"id": first["id"], "text": "hello"}
    assert list(second) == ["id"]
    assert member.position == second["id"]
    assert len({start, first["id"], second["id"]}) == 3
    assert second["id"] == member.position


@pytest.mark.parametrize("data", ["hello", "[1]", b"{}"])
def test_json_id_wants_an_object(data):
    with pytest.raises(ValueError, match="a message is a JSON object"):
        json_id("1-1", data)


def stamp(position: str, data: Any) -> str:
    return f"{position} {data}"


def test_a_client_that_comes_back_gets_what_it_missed_then_goes_on(join):
    rooms = Rooms(stamp=stamp)
    room = rooms["lobby"]
    for text in "abcd":
        room.send(text)
    _, live = join(room)
    room.send("e")
    since = read(live, 1)[0].split()[0]
    for text in "fgh":
        room.send(text)
    member, peer = join(room, since=since)
    assert member.is_complete
    room.send("i")
    assert [text.split()[1] for text in read(peer, 4)] == list("fghi")
    assert read(live, 4)[-1].split()[0] == member.position


def test_history_for_a_client_that_joins_for_the_first_time(join):
    rooms = Rooms(stamp=stamp)
    room = rooms["lobby"]
    assert room.history() == []
    _, peer = join(room)
    for text in "abcdef":
        room.send(text)
    assert room.history(3) == read(peer, 6)[-3:]
    assert len(room.history()) == 6


def test_a_client_that_missed_nothing(join):
    rooms = Rooms(stamp=stamp)
    member, _ = join(rooms["lobby"])
    again, peer = join(rooms["lobby"], since=member.position)
    assert again.is_complete
    rooms["lobby"].send("next")
    assert read(peer, 1)[0].endswith("next")


@pytest.mark.parametrize("since", [None, ""])
def test_who_comes_for_the_first_time_has_missed_nothing(join, since):
    rooms = Rooms()
    rooms["lobby"].send("before")
    member, peer = join(rooms["lobby"], since=since, gap="you missed something")
    rooms["lobby"].send("live")
    assert member.is_complete
    assert read(peer, 1) == ["live"]


@pytest.mark.parametrize("since", ["garbage", "0-0", "1-1+ff.3", "1" * 5000, 7, ["1-1"]])
def test_a_client_with_an_unknown_id_gets_the_gap_first(join, since):
    rooms = Rooms()
    rooms["lobby"].send("kept")
    member, peer = join(rooms["lobby"], since=since, gap="you missed something")
    rooms["lobby"].send("live")
    assert not member.is_complete
    assert read(peer, 3) == ["you missed something", "kept", "live"]


@pytest.mark.parametrize("tail", ["+ff.3", "+" + "f" * 300 + ".3", "0" * 10])
def test_nothing_of_a_position_that_a_client_invented_is_kept_or_sent_on(join, tail):
    rooms = Rooms(stamp=stamp)
    honest, witness = join(rooms["lobby"])
    since = honest.position + tail
    member, peer = join(rooms["lobby"], since=since, gap="gap")
    assert read(peer, 1) == ["gap"]
    assert (member.is_complete, member.position) == (False, honest.position)
    rooms["lobby"].send("live")
    assert read(peer, 1) == read(witness, 1)


def test_a_history_that_does_not_reach_back(join):
    rooms = Rooms(MemoryBroker(history=5))
    member, peer = join(rooms["lobby"])
    since = member.position
    for number in range(7):
        rooms["lobby"].send(str(number))
    member, peer = join(rooms["lobby"], since=since, gap="gap")
    assert read(peer, 6) == ["gap", "2", "3", "4", "5", "6"]


def test_what_is_sent_while_a_slow_client_catches_up_waits_its_turn(rooms, pair):
    """However much that is: no policy closes a client for what it missed."""
    room = rooms["lobby"]
    anchor, _ = pair()
    with room.join(anchor, policy=policies.drop_oldest()) as member:
        since = member.position
        missed = fill(room, "missed ", 90)
        socket, peer = pair(write_high_water=1)

        def come_back() -> None:
            with room.join(socket, since=since, policy=policies.close(limit=1)):
                came_back.set()
                gevent.sleep(5)

        came_back = gevent.event.Event()
        coming = gevent.spawn(come_back)
        gevent.sleep(0)
        live = fill(room, "live ", 50)
        assert not came_back.is_set()
        assert read(peer, 140) == missed + live
        assert came_back.wait(limit())
        coming.kill()
    assert rooms.stats.closed == 0


def test_who_catches_up_too_slowly_is_closed_before_memory_runs_out(rooms, pair):
    room = rooms["lobby"]
    anchor, _ = pair()
    with room.join(anchor, policy=policies.drop_oldest()) as member:
        since = member.position
        fill(room, count=90)
        socket, peer = pair(write_high_water=1)

        def come_back() -> None:
            with (
                pytest.raises(greenws.ConnectionClosed),
                room.join(socket, since=since, policy=policies.close(limit=150)),
            ):
                raise AssertionError("it has caught up")

        coming = gevent.spawn(come_back)
        gevent.sleep(0)
        fill(room, count=1500, size=10)
        assert (rooms.stats.closed, len(room)) == (0, 2)
        room.send("one too many")
        assert (rooms.stats.closed, len(room)) == (1, 2)
        assert len(peer.read_frame()[2]) == 5000
        while (last := peer.read_frame())[1] != CLOSE:
            pass
        assert last == TOO_SLOW
        peer.send(close_frame(1013))
        coming.get(timeout=limit())
        assert (len(room), rooms.stats.members) == (1, 1)


def test_who_comes_from_a_process_that_began_later_is_not_deaf(pair):
    rooms, later = Rooms(), Rooms()
    later.broker._epoch = str(int(later.broker._epoch) + 1000)
    (first, _), (second, peer) = pair(), pair()
    with later["r"].join(first) as member:
        since = member.position
    with rooms["r"].join(second, since=since, gap="a gap") as member:
        assert not member.is_complete
        rooms["r"].send("hello")
        assert read(peer, 2) == ["a gap", "hello"]


def test_a_message_that_the_stamp_does_not_take_is_skipped_for_who_comes_back(pair, error_log):
    rooms = Rooms(stamp=json_id)
    broker = rooms.broker
    socket, peer = pair()
    for text in ("{}", "no object", '{"n": 1}'):  # of another program
        broker.publish("r", text)
    with rooms["r"].join(socket, since="0-0"):
        assert [json.loads(text).get("n") for text in read(peer, 2)] == [None, 1]
    assert len(rooms["r"].history()) == 2
    said = [record.getMessage() for record in error_log.take()]
    assert said == ["a message of the room 'r' was skipped"] * 2


def test_a_broker_carries_one_rooms_only():
    broker = MemoryBroker()
    rooms = Rooms(broker)
    with pytest.raises(ValueError, match="already serves other Rooms"):
        Rooms(broker)
    rooms.close()
    Rooms(broker)


def test_a_client_that_vanishes_while_it_catches_up(rooms, pair):
    room = rooms["lobby"]
    room.send("x")
    socket, peer = pair()
    peer.reset()
    with pytest.raises(greenws.ConnectionClosed):
        with room.join(socket, since="0-0"):
            pass
    assert (len(room), len(rooms), rooms.stats.members) == (0, 0, 0)


def test_who_sends_learns_that_the_stamp_does_not_take_it(join):
    rooms = Rooms(stamp=json_id)
    _, peer = join(rooms["lobby"])
    with pytest.raises(ValueError, match="a message is a JSON object"):
        rooms["lobby"].send("hello")
    rooms["lobby"].send("{}")
    assert json.loads(read(peer, 1)[0]).keys() == {"id"}
    assert rooms.stats.sent == 1


def test_a_stamp_that_fails_on_arrival_skips_a_message_and_nothing_else(join, error_log):
    """Another process may have sent it, with another stamp."""

    def stamp(position: str, data: Any) -> str:
        if data == "two" and position != "0-0":
            raise ValueError
        return str(data.upper())

    rooms = Rooms(stamp=stamp)
    _, peer = join(rooms["lobby"])
    for text in ("one", "two", "three"):
        rooms["lobby"].send(text)
    assert read(peer, 2) == ["ONE", "THREE"]
    (record,) = error_log.take()
    assert "'lobby' was skipped" in record.getMessage()


# -- joins and leaves at random


class Crowd(RuleBasedStateMachine):
    """Members come, go, drop out, come back and send. Each one has heard, at the end of every step,
    exactly what was sent while it was there, once, in order; and after a break what it missed."""

    names = st.sampled_from("abcde")

    @initialize()
    def begin(self) -> None:
        self.rooms = Rooms(stamp=stamp)
        self.sent: list[str] = []
        self.here: dict[str, tuple[Any, Any, Any]] = {}
        self.heard: dict[str, list[str]] = {}
        self.since: dict[str, str] = {}
        self.expected: dict[str, list[str]] = {}

    def _enter(self, name: str, since: str | None) -> None:
        ours, theirs = gevent_socket.socketpair()
        socket = greenws.WebSocket(Transport(ours, gevent.get_hub(), None, None), greenws.Config())
        manager = self.rooms["r"].join(socket, since=since, name=name)
        member = manager.__enter__()
        self.since[name] = member.position if since is None else since
        self.here[name] = (manager, socket, Peer(theirs))

    @rule(name=names)
    def join(self, name: str) -> None:
        if name not in self.here:
            self.heard[name], self.expected[name] = [], []
            self._enter(name, None)

    @rule(name=names)
    def drop_out(self, name: str) -> None:
        if name in self.here:
            manager, socket, peer = self.here.pop(name)
            manager.__exit__(None, None, None)
            socket._abandon(1001)
            peer.close()

    @rule(name=names)
    def come_back(self, name: str) -> None:
        if name in self.since and name not in self.here:
            self._enter(name, self.since[name])

    @rule(text=st.sampled_from(["x", "yy", "z" * 300]))
    def send(self, text: str) -> None:
        text = f"{len(self.sent)}{text}"
        self.sent.append(text)
        self.rooms["r"].send(text)
        for expected in self.expected.values():
            expected.append(text)

    @invariant()
    def all_have_heard_all(self) -> None:
        for name, (_, _, peer) in self.here.items():
            while len(self.heard[name]) < len(self.expected[name]):
                position, text = read(peer, 1)[0].split(" ", 1)
                self.since[name] = position
                self.heard[name].append(text)
            assert self.heard[name] == self.expected[name]
        present = [member.info["name"] for member in self.rooms["r"].members]
        assert sorted(present) == sorted(self.here)
        assert self.rooms.stats.members == len(self.here)

    def teardown(self) -> None:
        for name in list(self.here):
            self.drop_out(name)
        assert len(self.rooms) == 0


TestCrowd = Crowd.TestCase
TestCrowd.settings = examples(25, stateful_step_count=30)


class Further(MemoryBroker):
    """A client that comes back has received two messages more than this process."""

    def resume(self, room: str, since: str) -> Replay:
        return FurtherReplay(int(since.partition("-")[2]))


class FurtherReplay(Replay):
    def __init__(self, reached: int) -> None:
        self.reached = reached

    def begin(self) -> Cursor:
        return FurtherCursor(self.reached)

    def pages(self) -> Iterator[Page]:
        yield Page([])


class FurtherCursor(Cursor):
    is_level = False

    def __init__(self, reached: int) -> None:
        self.reached = reached

    def advance(self, entry: Entry) -> bool:
        self.is_level = int(entry.position.partition("-")[2]) > self.reached
        return self.is_level

    def position(self, position: str) -> str:
        epoch, _, number = position.partition("-")
        return f"{epoch}-{max(int(number), self.reached)}"


def test_a_client_that_was_further_in_the_log_at_another_process_gets_nothing_twice(pair):
    rooms = Rooms(Further(), stamp=stamp)
    room = rooms["r"]
    (first, witness), (second, peer) = pair(), pair()
    with room.join(first):
        room.send("before")
        epoch, _, number = read(witness, 1)[0].split()[0].partition("-")
        since = f"{epoch}-{int(number) + 2}"
        with room.join(second, since=since) as member:
            assert member.position == since
            for text in "abc":
                room.send(text)
            assert read(peer, 1) == [f"{member.position} c"]
            room.send("d")
            assert read(peer, 1) == read(witness, 4)[3:] == [f"{epoch}-{int(number) + 4} d"]
            assert member._is_prompt


def test_a_place_that_somebody_invented_silences_nobody_for_ever(pair):
    room = Rooms()["r"]
    socket, peer = pair()
    with room.join(socket, since="9" * 19 + "-0"):
        room.send("heard")
        assert peer.read_frame()[2] == b"heard"


# -- in a forked child


def test_a_child_that_leaves_a_room_leaves_the_parents_member_in_it(join, rooms):
    """Its session ends there, since the socket is the parent's."""
    room = rooms["r"]
    with contextlib.ExitStack() as session:
        socket = join(room)[0].socket
        session.enter_context(room.join(socket))
        assert len(room) == 2

        def child() -> None:
            assert not socket.is_connected
            room.send("to nobody here")
            session.close()
            assert len(room) == 2

        in_child(child)
    assert len(room) == 1


# -- presence with ids, and reach


def test_present_and_the_later_changes_are_who_is_there(rooms, join, pair):
    room = rooms["lobby"]
    ann, _ = join(room, name="Ann")
    bob, peer = join(room, name="Bob", presence=lambda kind, id, info: f"{kind} {id}")
    assert {each.id for each in bob.present} == {ann.id, bob.id}
    assert ann.present is None
    there = {each.id for each in bob.present}
    cid, _ = join(room)
    socket, _ = pair()
    with room.join(socket) as dan:
        pass
    for kind, id_ in (text.split() for text in read(peer, 3)):
        (there.add if kind == "join" else there.remove)(id_)
    assert there == {each.id for each in room.members} == {ann.id, bob.id, cid.id}
    assert dan.id not in there


class HeldUpBroker(MemoryBroker):
    """Clients that come back wait, before they are sent what they missed, for ``may_go_on``."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up = 0
        self.may_go_on = gevent.event.Event()

    def resume(self, room: str, since: str) -> Replay:
        broker = self

        class HeldUp(Replay):
            def begin(self) -> None:
                return

            def pages(self) -> Iterator[Page]:
                broker.held_up += 1
                broker.may_go_on.wait()
                yield Page([])

        return HeldUp()


TOLD = [lambda kind, id, info: f"{kind} {id}", lambda *change: None]


@pytest.mark.parametrize("told", TOLD)
def test_present_includes_changes_during_a_replay(join, pair, told):
    """The handler can only send it after that, and a page takes its list from it."""
    broker = HeldUpBroker()
    room = Rooms(broker)["lobby"]
    ann, _ = join(room)
    slow, _ = join(room, presence=told)
    fill(room)
    assert slow.is_lagging
    bob_socket, _ = pair()
    with room.join(bob_socket) as bob:
        joining = gevent.spawn(join, room, since="0-0", presence=told)
        wait_until(lambda: broker.held_up)
    cid, _ = join(room)
    socket, _ = pair()
    with room.join(socket):
        pass
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    broker.may_go_on.set()
    member, peer = joining.get(timeout=limit())
    assert [each.id for each in member.present] == [ann.id, slow.id, member.id, cid.id]
    dan, _ = join(room)
    assert dan.id not in [each.id for each in member.present]
    assert slow.is_lagging
    assert [each.id for each in slow.present] == [ann.id, slow.id]
    if told(*"kii"):
        messages = read(peer, 5)
        assert messages[:2] == [f"leave {bob.id}", f"join {cid.id}"]
        assert messages[4] == f"join {dan.id}"


@pytest.mark.parametrize("told", TOLD)
def test_a_change_costs_those_who_come_back_no_list_of_all_others(join, told, monkeypatch):
    broker = HeldUpBroker()
    room = Rooms(broker)["lobby"]
    joining = [gevent.spawn(join, room, since="0-0", presence=told) for _ in range(40)]
    wait_until(lambda: broker.held_up == 40)
    reads = 0

    def read_id(who: Presence) -> str:
        nonlocal reads
        reads += 1
        return who[0]

    with monkeypatch.context() as context:
        context.setattr(Presence, "id", property(read_id))
        new = []
        for _ in range(40):
            new.append(join(room)[0])
            room.send("delivered after that change alone")
        wait_until(lambda: room._fan_out._finished == room._fan_out._last)
        broker.may_go_on.set()
        old = [each.get(timeout=limit())[0] for each in joining]
    there = {each.id for each in [*old, *new]}
    assert all({each.id for each in member.present} == there for member in old)
    assert reads < 4 * len(old) * len(there)


def test_what_a_client_learns_while_it_comes_back_takes_bounded_memory(join, pair):
    broker = HeldUpBroker()
    room = Rooms(broker)["lobby"]
    joining = gevent.spawn(join, room, since="0-0", presence=lambda *change: None)
    wait_until(lambda: broker.held_up)
    (member,) = room._fan_out._others
    for _ in range(200):
        with room.join(pair()[0]):
            pass
        assert len(member._present.era.changes) < 70
    wait_until(lambda: room._fan_out._finished == room._fan_out._last)
    broker.may_go_on.set()
    assert joining.get(timeout=limit())[0] is member
    assert [each.id for each in member.present] == [member.id]


def test_a_room_has_its_position_for_a_page_that_is_rendered(join):
    rooms = Rooms(stamp=json_id)
    room = rooms["lobby"]
    room.send('{"n": 1}')
    position = room.position
    assert json.loads(room.history()[-1])["id"] == position
    room.send('{"n": 2}')
    member, peer = join(room, since=position)
    assert member.is_complete
    assert [json.loads(text)["n"] for text in read(peer, 1)] == [2]


def test_disconnect_closes_all_members_after_earlier_messages(rooms, join):
    room = rooms["lobby"]
    peers = [join(room)[1] for _ in range(3)]
    _, other = join(rooms["elsewhere"])
    room.send("the end")
    room.disconnect(4000, "over")
    for peer in peers:
        assert read(peer, 1) == ["the end"]
        assert peer.read_frame() == (True, CLOSE, b"\x0f\xa0over")
    assert other.is_silent(0.01)


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.id, lambda m: m.room.members[0]])
def test_disconnect_closes_one_member(rooms, join, form):
    room = rooms["lobby"]
    (ann, peer), (_, other) = join(room), join(room)
    room.disconnect(member=form(ann))
    assert peer.read_frame() == (True, CLOSE, b"\x03\xf0")
    room.send("still here")
    assert read(other, 1) == ["still here"]


@pytest.mark.parametrize("member", ["", "a\nb"])
def test_disconnect_of_an_empty_id_disconnects_nobody(rooms, join, member):
    _, peer = join(rooms["lobby"])
    with pytest.raises(ValueError, match="None to disconnect all"):
        rooms["lobby"].disconnect(member=member)
    rooms["lobby"].send("still here")
    assert read(peer, 1) == ["still here"]


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (999, ""), (1000, "x" * 124)])
def test_disconnect_refuses_what_no_close_can_hold(rooms, code, reason):
    with pytest.raises(ValueError, match=r"may not be sent|at most 123 bytes"):
        rooms["lobby"].disconnect(code, reason)


def test_send_waits_for_the_log_with_wait(join):
    flushed: list[Any] = []

    class Slow(MemoryBroker):
        def flush(self, timeout: float | None = None) -> bool:
            flushed.append(timeout)
            return True

    rooms = Rooms(Slow())
    rooms["r"].send("no")
    assert flushed == []
    rooms["r"].send("yes", wait=True)
    assert flushed == [None]


def test_what_others_missed_too_is_encoded_once_for_all(join):
    rooms = Rooms(stamp=stamp)
    room = rooms["lobby"]
    first, _ = join(room)
    since = first.position
    made: list[str] = []
    rooms.broker.resume = lambda *args: made.append("asked")
    for number in range(20):
        room.send(str(number))
    comers = [join(room, since=since) for _ in range(5)]
    heard = [read(peer, 20) for _, peer in comers]
    assert [text.split()[1] for text in heard[0]] == [str(number) for number in range(20)]
    assert all(each == heard[0] for each in heard)
    assert made == []
    assert all(member.is_complete for member, _ in comers)


def test_a_slow_client_gets_the_tail_at_its_own_pace(rooms, pair):
    room = rooms["lobby"]
    anchor, _ = pair()
    with room.join(anchor, policy=policies.drop_oldest()) as member:
        since = member.position
        missed = fill(room, "missed ", 60, 10_000)
        socket, peer = pair(write_high_water=1)

        def come_back() -> None:
            with room.join(socket, since=since, policy=policies.close(limit=1)):
                came_back.set()
                gevent.sleep(5)

        came_back = gevent.event.Event()
        coming = gevent.spawn(come_back)
        gevent.sleep(0.01)
        assert not came_back.is_set()
        live = fill(room, "live ", 20, 10)
        assert read(peer, 80) == missed + live
        assert came_back.wait(limit())
        coming.kill()
    assert rooms.stats.closed == 0


class Double(WebSocket):
    """As somebody may write it for a test."""

    def __init__(self):
        self.sent = []

    def send(self, data):
        self.sent.append(data)


def test_a_join_without_with_is_reported(rooms, pair, error_log):
    socket, _ = pair()
    room = rooms["lobby"]
    room.join(socket)
    (record,) = error_log.take()
    assert "'with room.join(socket) as member:'" in record.getMessage()
    assert room.members == []
    membership = room.join(socket)
    with membership:
        assert len(room.members) == 1
    with pytest.raises(RuntimeError, match="is for one 'with'"), membership:
        pass
    with pytest.raises(AttributeError, match=r"use member\.position inside"):
        _ = membership.position


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda room: room.send([]), r"not list; to send JSON: send\(json.dumps"),
        (lambda room: room.send(None), "must be a str or a bytes-like object, not NoneType"),
        (lambda room: room.disconnect("bye"), r"close\(1000, 'bye'\)"),
        (lambda room: room.disconnect(4000, b"x"), "reason must be a str"),
        (lambda room: room.disconnect(member=b"x"), "an id or None, not b'x'"),
        (lambda room: room.join(None).__enter__(), "takes the session's socket, not None"),
        (lambda room: room.join("ada").__enter__(), "takes the session's socket, not 'ada'"),
        (lambda room: room.join(create_autospec(WebSocket)).__enter__(), "greenws.testing.connect"),
        (lambda room: room.join(Double()).__enter__(), "the session's socket, not <Double"),
    ],
)
def test_a_wrong_argument_is_reported(call, match):
    with pytest.raises(TypeError, match=match):
        call(Rooms()["a"])


def test_a_wrong_gap_is_reported_when_a_member_joins(pair):
    with pytest.raises(TypeError, match="gap must be a message"):
        Rooms()["a"].join(pair()[0], gap=["away"]).__enter__()


def test_the_gap_and_messages_of_presence_may_be_dicts(join):
    room = Rooms(stamp=json_id)["a"]
    _, peer = join(
        room,
        since="1-1",
        gap={"gap": True},
        presence=lambda kind, id, info: {kind: info["name"]},
    )
    assert read(peer, 1) == ['{"gap":true}']
    join(room, name="Bob")
    [message] = [json.loads(text) for text in read(peer, 1)]
    assert message.pop("id") and message == {"join": "Bob"}


@pytest.mark.parametrize("name", ["broadcast", "emit", "publish"])
def test_a_room_under_the_names_of_other_libraries_leads_to_send(name):
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; use send\(data\)"):
        getattr(Rooms()["lobby"], name)


def test_what_a_room_has_no_call_for_leads_to_a_block():
    for name in ("add", "leave"):
        with pytest.raises(AttributeError, match=r"use 'with room\.join\(socket\):'"):
            getattr(Rooms()["lobby"], name)


def test_options_of_other_places_are_reported():
    for name in ("host", "redis", "url"):
        with pytest.raises(TypeError, match=rf"'{name}'; .*Rooms\('redis://localhost:6379'\)"):
            Rooms(**{name: "localhost"})
    with pytest.raises(TypeError, match="'history'; that is an option of the broker"):
        Rooms(history=5)
    with pytest.raises(TypeError, match="count must be a number of messages, not '5'"):
        Rooms()["lobby"].history("5")


@pytest.mark.parametrize("name", ["send", "join", "get", "emit", "broadcast", "leave"])
def test_what_is_done_with_a_room_is_not_done_with_all(name):
    with pytest.raises(AttributeError, match=r"'Rooms' object.*; use .*rooms\[name\]"):
        getattr(Rooms(), name)
