"""The log of a room in memory: order, history, and that an empty room costs nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from greenws.brokers.memory import MemoryBroker
from greenws.rooms.broker import JOIN, MESSAGE


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    broker = MemoryBroker(history=3, max_age=60, clock=clock)
    broker.got = []
    broker.deliver = lambda room, entry: broker.got.append((room, entry))
    return broker


def publish(broker: MemoryBroker, *texts: str, room: str = "a") -> list[str]:
    before = len(broker.got)
    for text in texts:
        broker.publish(room, MESSAGE, text)
    return [entry.id for _, entry in broker.got[before:]]


def history(broker: MemoryBroker, after: str, until: str) -> tuple[bool, list[str]]:
    complete, entries = broker.history("a", after, until)
    return complete, [entry.data for entry in entries]


def test_entries_are_delivered_at_once_and_in_order(broker):
    publish(broker, "1", "2")
    publish(broker, "3", room="b")
    assert [(room, entry.data) for room, entry in broker.got] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "3"),
    ]
    numbers = [entry.number for _, entry in broker.got]
    assert numbers == sorted(set(numbers))


def test_history_gives_what_lies_between_two_places(broker):
    ids = publish(broker, "1", "2", "3")
    assert history(broker, ids[0], ids[2]) == (True, ["2", "3"])
    assert history(broker, ids[0], ids[1]) == (True, ["2"])
    assert history(broker, ids[2], ids[2]) == (True, [])


def test_history_says_when_it_does_not_reach_back(broker):
    start = broker.open("a").id
    ids = publish(broker, "1", "2", "3")
    assert history(broker, start, ids[-1]) == (True, ["1", "2", "3"])
    ids += publish(broker, "4", "5")
    assert history(broker, ids[1], ids[-1]) == (True, ["3", "4", "5"])
    assert history(broker, ids[0], ids[-1]) == (False, ["3", "4", "5"])
    assert history(broker, start, ids[-1]) == (False, ["3", "4", "5"])


def test_an_id_of_another_process_is_not_taken_for_ours(broker):
    ids = publish(broker, "1", "2")
    assert history(broker, "1600000000000-1", ids[-1]) == (False, ["1", "2"])
    assert history(broker, "0-0", ids[-1]) == (False, ["1", "2"])


def test_history_ends_with_its_age(broker, clock):
    ids = publish(broker, "1", "2")
    clock.now += 40
    ids += publish(broker, "3")
    clock.now += 40
    assert history(broker, ids[1], ids[-1]) == (True, ["3"])
    assert history(broker, ids[0], ids[-1]) == (False, ["3"])


def test_presence_is_no_history(broker):
    start = broker.open("a").id
    broker.publish("a", JOIN, "{}", "ann")
    (id_,) = publish(broker, "1")
    assert history(broker, start, id_) == (True, ["1"])


def test_without_history_nothing_is_kept(clock):
    broker = MemoryBroker(history=0, clock=clock)
    start = broker.open("a").id
    assert broker.history("a", start, start) == (True, [])
    broker.publish("a", MESSAGE, "1")
    assert broker.history("a", start, broker.open("a").id) == (False, [])


def test_idle_rooms_cost_nothing(broker, clock):
    start = broker.open("room 0").id
    for number in range(1000):
        publish(broker, "x", room=f"room {number}")
    clock.now += 100
    publish(broker, "x")
    assert len(broker._logs) == 1
    assert broker.history("room 0", start, broker.open("room 0").id) == (False, [])


def measure(fill: Callable[[], None]) -> int:
    """Bytes that are allocated afterwards and were not before."""
    gc.collect()
    tracemalloc.start()
    try:
        fill()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_the_log_of_a_room_is_bounded_in_bytes():
    broker = MemoryBroker(history=10_000, history_bytes=200_000)
    start = broker.open("a").id
    for number in range(100):
        broker.publish("a", MESSAGE, f"{number} ".ljust(10_000, "."))
    complete, entries = broker.history("a", start, broker.open("a").id)
    assert not complete
    assert [entry.data.split()[0] for entry in entries] == [str(n) for n in range(81, 100)]
    assert broker.history("a", entries[0].id, entries[-1].id) == (True, entries[1:])


def test_a_message_larger_than_the_log_of_a_room_is_delivered_and_not_kept(broker):
    broker._history_bytes = 4000
    ids = publish(broker, "small", "l" * 4000)
    assert broker.got[-1][1].data == "l" * 4000
    assert history(broker, ids[0], ids[1]) == (False, [])
    assert (broker._logs, broker._bytes) == ({}, 0)
    ids += publish(broker, "again")
    assert history(broker, ids[1], ids[2]) == (True, ["again"])


@pytest.mark.parametrize("size", [3, 500, 40_000])
def test_rooms_that_everybody_left_are_bounded_in_bytes(size):
    """Objects count, too: it is measured what is allocated."""
    broker = MemoryBroker(max_bytes=1_000_000)
    start = broker.open("never left").id
    broker.publish("never left", MESSAGE, "kept")

    def fill() -> None:
        for number in range(3_000_000 // (size + 1600)):
            broker.publish(f"room {number}", MESSAGE, f"{number}".ljust(size, "."))

    assert measure(fill) < 1_000_000
    assert sum(log.bytes for log in broker._logs.values()) == broker._bytes > 500_000
    # Rooms without members go first, although nothing was sent here for longest.
    complete, entries = broker.history("never left", start, broker.open("never left").id)
    assert [entry.data for entry in entries] == ["kept"]
    assert complete
    # Whoever comes back to one that is forgotten is told so.
    assert broker.history("room 0", start, broker.open("room 0").id) == (False, [])


def test_tiny_messages_are_bounded_by_what_they_cost():
    broker = MemoryBroker(history=1_000_000, max_bytes=1_000_000)

    def fill() -> None:
        for _ in range(20_000):
            broker.publish("a", MESSAGE, "x")

    assert 300_000 < measure(fill) < 1_000_000


def test_open_rooms_are_bounded_when_no_others_are_left():
    broker = MemoryBroker(max_bytes=100_000)
    for name in "abc":
        broker.open(name)
        for _ in range(5):
            broker.publish(name, MESSAGE, "x" * 9000)
    assert broker._bytes <= 100_000
    assert len(broker._logs["c"].entries) == 5


def test_what_expires_is_no_longer_counted(broker, clock):
    publish(broker, "1", "2", "3", "4")
    publish(broker, "5", room="b")
    clock.now += 100
    publish(broker, "6")
    assert broker._bytes == broker._logs["a"].bytes


def test_a_room_is_open_until_its_last_close(broker):
    broker.open("a")
    broker.open("a")
    assert not broker.close("a")
    assert broker.close("a")
    assert broker._opened == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"history": -1}, ValueError, "history must be 0 or more, not -1"),
        ({"history_bytes": -1}, ValueError, "history_bytes must be 0 or more, not -1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be a whole number, not 1.5"),
        ({"history": None}, TypeError, "history must be a whole number, not None"),
        ({"history": 1.5}, TypeError, "history must be a whole number, not 1.5"),
        ({"history": True}, TypeError, "history must be a whole number, not True"),
        ({"max_age": None}, TypeError, "max_age must be a number of seconds, not None"),
        ({"max_age": "60"}, TypeError, "max_age must be a number of seconds, not '60'"),
        ({"max_age": 0}, ValueError, "max_age must be a number of seconds above 0, not 0"),
        ({"max_age": float("nan")}, ValueError, "max_age must be .* above 0, not nan"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        MemoryBroker(**options)


class Lock:
    """Counts how often it was held."""

    def __init__(self) -> None:
        self.held, self.times = False, 0

    def __enter__(self) -> None:
        self.held = True
        self.times += 1

    def __exit__(self, *exception: object) -> None:
        self.held = False


def test_nothing_is_read_while_another_thread_writes(clock):
    lock, read = Lock(), []

    def watch() -> float:
        read.append(lock.held)
        return clock.now

    broker = MemoryBroker(clock=watch)
    broker._lock = lock
    place = broker.open("a").id
    broker.publish("a", MESSAGE, "1")  # in which Rooms holds it
    read.clear()
    broker.newest("a", 5)
    broker.history("a", place, place)
    assert (read, lock.times) == ([True, True], 3)
