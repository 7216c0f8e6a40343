"""The log of a room in memory: order, history, and that an empty room costs nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from greenws.brokers.memory import MemoryBroker
from greenws.rooms.broker import Entry


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
    broker.attach(Notebook())
    for room in "ab":
        broker.open(room)
    return broker


class Notebook:
    """Writes down what is delivered."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.got: list[tuple[str, Entry]] = []

    def deliver(self, room: str, entry: Entry) -> None:
        self.got.append((room, entry))


def publish(broker: MemoryBroker, *texts: str, room: str = "a") -> list[str]:
    positions = []
    for text in texts:
        broker.publish(room, text)
        positions.append(broker.position(room))
    return positions


def history(broker: MemoryBroker, since: str, room: str = "a") -> tuple[bool, list[str]]:
    """Whether all is there that came after a position, and what is."""
    replay = broker.resume(room, since)
    assert replay.begin() is None
    pages = list(replay.pages())
    texts = [message.data for page in pages for message in page.messages]
    return not any(page.gap for page in pages), texts


def test_messages_are_delivered_at_once_and_in_order(broker):
    publish(broker, "1", "2")
    publish(broker, "3", room="b")
    got = broker._listener.got
    assert [(room, entry.data) for room, entry in got] == [("a", "1"), ("a", "2"), ("b", "3")]
    assert len({entry.position for _, entry in got}) == 3


def test_nothing_is_delivered_of_a_room_that_is_not_open(broker):
    publish(broker, "kept", room="c")
    assert broker._listener.got == []
    assert [message.data for message in broker.newest("c", 5)] == ["kept"]


def test_a_replay_gives_what_came_after_a_position(broker):
    ids = publish(broker, "1", "2", "3")
    assert history(broker, ids[0]) == (True, ["2", "3"])
    assert history(broker, ids[2]) == (True, [])


def test_a_replay_ends_with_what_was_delivered_when_it_began(broker):
    ids = publish(broker, "1", "2")
    replay = broker.resume("a", ids[0])
    replay.begin()
    publish(broker, "3")
    assert [[message.data for message in page.messages] for page in replay.pages()] == [["2"]]


def test_a_replay_says_when_the_history_does_not_reach_back(broker):
    start = broker.position("a")
    ids = publish(broker, "1", "2", "3")
    assert history(broker, start) == (True, ["1", "2", "3"])
    ids += publish(broker, "4", "5")
    assert history(broker, ids[1]) == (True, ["3", "4", "5"])
    assert history(broker, ids[0]) == (False, ["3", "4", "5"])
    assert history(broker, start) == (False, ["3", "4", "5"])


def test_a_replay_holds_a_page_at_a_time_and_reports_each_gap():
    broker = MemoryBroker(history=350)
    start = broker.position("a")
    publish(broker, *map(str, range(350)))
    replay = broker.resume("a", start)
    replay.begin()
    pages = replay.pages()
    first = next(pages)
    assert [message.data for message in first.messages] == [str(n) for n in range(100)]
    publish(broker, *["later"] * 150)  # pushes out 0 to 149
    second = next(pages)
    assert [message.data for message in second.messages] == [str(n) for n in range(150, 250)]
    publish(broker, *["later"] * 150)  # and up to 299
    third = list(pages)
    rest = [message.data for page in third for message in page.messages]
    assert rest == [str(n) for n in range(300, 350)]
    assert [page.gap for page in (first, second, *third)] == [False, True, True]


def test_a_position_of_another_process_is_a_gap(broker):
    publish(broker, "1", "2")
    epoch, _, number = broker.position("a").partition("-")
    for since in ("1600000000000-1", "0-0", f"{epoch}-3", f"{epoch}--1", f"{epoch}-", "x" * 10**6):
        assert history(broker, since) == (False, ["1", "2"])
    assert history(broker, f"{epoch}-{number}") == (True, [])


def test_history_ends_with_its_age(broker, clock):
    ids = publish(broker, "1", "2")
    clock.now += 40
    ids += publish(broker, "3")
    clock.now += 40
    assert history(broker, ids[1]) == (True, ["3"])
    assert history(broker, ids[0]) == (False, ["3"])


def test_without_history_nothing_is_kept(clock):
    broker = MemoryBroker(history=0, clock=clock)
    start = broker.position("a")
    assert history(broker, start) == (True, [])
    broker.publish("a", "1")
    assert history(broker, start) == (False, [])


def test_idle_rooms_cost_nothing(broker, clock):
    start = broker.position("room 0")
    for number in range(1000):
        publish(broker, "x", room=f"room {number}")
    clock.now += 100
    publish(broker, "x")
    assert len(broker._logs) == 1
    assert history(broker, start, "room 0") == (False, [])


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
    start = broker.position("a")
    ids = publish(broker, *(f"{number} ".ljust(10_000, ".") for number in range(100)))
    complete, texts = history(broker, start)
    assert not complete
    assert [text.split()[0] for text in texts] == [str(n) for n in range(81, 100)]
    assert history(broker, ids[81]) == (True, texts[1:])


def test_a_message_larger_than_the_log_of_a_room_is_delivered_and_not_kept(broker):
    broker._history_bytes = 4000
    ids = publish(broker, "small", "l" * 4000)
    assert broker._listener.got[-1][1].data == "l" * 4000
    assert history(broker, ids[0]) == (False, [])
    assert (broker._logs, broker._bytes) == ({}, 0)
    ids += publish(broker, "again")
    assert history(broker, ids[1]) == (True, ["again"])


@pytest.mark.parametrize("size", [3, 500, 40_000])
def test_rooms_that_everybody_left_are_bounded_in_bytes(size):
    """Objects count, too: it is measured what is allocated."""
    broker = MemoryBroker(max_bytes=1_000_000)
    broker.open("never left")
    start = broker.position("never left")
    broker.publish("never left", "kept")

    def fill() -> None:
        for number in range(3_000_000 // (size + 1600)):
            broker.publish(f"room {number}", f"{number}".ljust(size, "."))

    assert measure(fill) < 1_000_000
    assert sum(log.bytes for log in broker._logs.values()) == broker._bytes > 500_000
    # Rooms without members go first, although nothing was sent here for longest.
    assert history(broker, start, "never left") == (True, ["kept"])
    # A client that comes back to one that is forgotten is told so.
    assert history(broker, start, "room 0") == (False, [])


def test_tiny_messages_are_bounded_by_what_they_cost():
    broker = MemoryBroker(history=1_000_000, max_bytes=1_000_000)

    def fill() -> None:
        for _ in range(20_000):
            broker.publish("a", "x")

    assert 300_000 < measure(fill) < 1_000_000


def test_open_rooms_are_bounded_when_no_others_are_left():
    broker = MemoryBroker(max_bytes=100_000)
    for name in "abc":
        broker.open(name)
        for _ in range(5):
            broker.publish(name, "x" * 9000)
    assert broker._bytes <= 100_000
    assert len(broker._logs["c"].entries) == 5


def test_what_expires_is_no_longer_counted(broker, clock):
    publish(broker, "1", "2", "3", "4")
    publish(broker, "5", room="b")
    clock.now += 100
    publish(broker, "6")
    assert broker._bytes == broker._logs["a"].bytes


def test_a_room_is_open_until_its_last_close():
    broker = MemoryBroker()
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
    broker.attach(Notebook())
    broker._listener.lock = lock
    position = broker.position("a")
    broker.publish("a", "1")
    broker.newest("a", 5)
    assert history(broker, position) == (True, ["1"])
    assert (read, lock.times) == ([True] * 3, 3)
