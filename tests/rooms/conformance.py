"""What any broker must do, to be run against it: ``greenws.rooms.broker`` says it in words.

Subclass ``BrokerConformance`` in a test module, and give it a fixture ``brokers``: a function that
makes a broker. For one that connects processes take ``SharedBrokerConformance``; what the function
makes is as in another process each time, over the same logs.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenws import Rooms
from greenws.rooms.broker import BEGINNING, LONGEST_POSITION, Broker, Entry, Message, Replay

from ..support.limits import limit, wait_until

Brokers = Callable[[], Broker]


class Notebook:
    """A listener that writes down what is delivered."""

    def __init__(self, broker: Broker) -> None:
        self.lock = threading.RLock()
        self.broker = broker
        self.entries: dict[str, list[Entry]] = {}
        self.changes: list[tuple[str, str, str, dict[str, Any]]] = []
        self.disconnects: list[tuple[str, int, str, str | None]] = []
        self.gaps: list[str] = []
        self.closed_rooms: list[str] = []
        broker.attach(self)

    def deliver(self, room: str, entry: Entry) -> None:
        assert self.broker.position(room) == entry.position
        self.entries.setdefault(room, []).append(entry)

    def presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        self.changes.append((room, kind, member, info))

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        self.disconnects.append((room, code, reason, member))

    def gap(self, room: str) -> None:
        self.gaps.append(room)

    def closed(self, room: str) -> None:
        self.closed_rooms.append(room)

    def wait(self, room: str) -> None:
        pass

    def heard(self, room: str = "r") -> list[Message]:
        return [
            Message(entry.position, entry.data)
            for entry in list(self.entries.get(room, ()))
            if entry.data is not None
        ]

    def hears(self, *texts: str | bytes, room: str = "r") -> list[Message]:
        wait_until(lambda: len(self.heard(room)) >= len(texts))
        assert [message.data for message in self.heard(room)] == list(texts)
        return self.heard(room)

    def replay(self, since: str, room: str = "r") -> tuple[bool, list[Message]]:
        """Whether nothing is missing, and what there is."""
        replay = self.broker.resume(room, since)
        assert isinstance(replay, Replay)
        with self.lock:
            replay.begin()
        pages = list(replay.pages())
        messages = [message for page in pages for message in page.messages]
        return not any(page.gap for page in pages), messages


class BrokerConformance:
    @pytest.fixture
    def process(self, brokers: Brokers) -> Iterator[Callable[[], Notebook]]:
        made: list[Notebook] = []

        def make() -> Notebook:
            made.append(Notebook(brokers()))
            return made[-1]

        yield make
        for each in made:
            each.broker.flush(limit())  # others may have a message before its sender has the answer
            each.broker.stop()
            each.broker.detach()

    @pytest.fixture
    def here(self, process: Callable[[], Notebook]) -> Iterator[Notebook]:
        notebook = process()
        notebook.broker.open("r")
        yield notebook
        notebook.broker.close("r")

    # -- what is delivered

    def test_messages_are_delivered_in_order_once_and_as_they_were(self, here):
        for data in ("one", b"\x00\xff", "", "zwölf", b""):
            here.broker.publish("r", data)
        here.hears("one", b"\x00\xff", "", "zwölf", b"")

    def test_each_message_has_a_position_of_its_own_that_fits_into_json(self, here):
        start = here.broker.position("r")
        for number in range(20):
            here.broker.publish("r", str(number))
        positions = [start, *(each.position for each in here.hears(*map(str, range(20))))]
        assert len(set(positions)) == 21
        assert all(len(each) <= LONGEST_POSITION for each in positions)
        assert all(json.dumps(each) == f'"{each}"' for each in positions)

    def test_exclude_comes_with_the_entry(self, here):
        socket: Any = object()
        here.broker.publish("r", "one", socket)
        here.broker.publish("r", "two")
        here.hears("one", "two")
        entries = [entry for entry in here.entries["r"] if entry.data is not None]
        assert [entry.exclude for entry in entries] == [socket, None]

    def test_rooms_do_not_get_each_others_messages(self, here):
        here.broker.open("s")
        here.broker.publish("s", "s")
        here.broker.publish("r", "r")
        here.hears("r")
        here.hears("s", room="s")
        assert here.broker.close("s")

    @pytest.mark.parametrize("name", ["", " ", "a:b", "{x}", "zwölf", "a\nb", "x" * 1000])
    def test_any_name_makes_a_room(self, here, name):
        here.broker.open(name)
        here.broker.publish(name, "hello")
        here.hears("hello", room=name)
        assert here.broker.close(name)

    def test_a_room_is_open_until_its_last_close(self, here):
        here.broker.open("r")
        assert not here.broker.close("r")
        here.broker.publish("r", "one")
        here.hears("one")
        here.broker.open("s")
        assert here.broker.close("s")
        here.broker.publish("s", "nobody hears it")
        assert here.broker.flush(5)
        assert here.heard("s") == []

    # -- what was missed

    def test_a_replay_gives_what_came_after_a_position(self, here):
        start = here.broker.position("r")
        for number in range(5):
            here.broker.publish("r", str(number))
        messages = here.hears(*map(str, range(5)))
        assert here.replay(start) == (True, messages)
        assert here.replay(messages[1].position) == (True, messages[2:])
        assert here.replay(messages[4].position) == (True, [])

    def test_a_replay_ends_with_what_was_delivered_when_it_began(self, here):
        here.broker.publish("r", "one")
        (one,) = here.hears("one")
        here.broker.publish("r", "two")
        here.hears("one", "two")
        replay = here.broker.resume("r", one.position)
        with here.lock:
            replay.begin()
        here.broker.publish("r", "three")
        here.hears("one", "two", "three")
        assert [each.data for page in replay.pages() for each in page.messages] == ["two"]

    @pytest.mark.parametrize(
        "since",
        [
            BEGINNING,
            "",
            "nonsense",
            "1-1",
            "9" * 19 + "-0",
            "17-0+" + "x" * LONGEST_POSITION,
            "x" * 10**6,
            '"',
            "\x00",
            "١-١",
            "\ud800",
        ],
    )
    def test_a_position_that_it_never_made_is_a_gap_before_all_that_is_kept(self, here, since):
        here.broker.publish("r", "kept")
        messages = here.hears("kept")
        assert here.replay(since) == (False, messages)

    def test_the_newest_messages_need_no_open_room(self, here):
        for number in range(5):
            here.broker.publish("r", str(number))
        messages = here.hears(*map(str, range(5)))
        assert here.broker.newest("r", 3) == messages[2:]
        assert here.broker.newest("r", 50) == messages
        assert here.broker.newest("nobody was here", 50) == []

    def test_the_end_of_a_room_needs_no_open_room(self, here):
        here.broker.publish("closed", "before")
        assert here.broker.flush(limit())
        end = here.broker.end_of("closed")
        here.broker.publish("closed", "after")
        assert here.broker.flush(limit())
        here.broker.open("closed")
        complete, messages = here.replay(end, room="closed")
        assert (complete, [each.data for each in messages]) == (True, ["after"])
        assert here.broker.close("closed")

    def test_the_end_of_a_room_that_nobody_has_used_is_a_position(self, here):
        end = here.broker.end_of("nobody was here")
        here.broker.publish("nobody was here", "first")
        assert here.broker.flush(limit())
        here.broker.open("nobody was here")
        complete, messages = here.replay(end, room="nobody was here")
        assert (complete, [each.data for each in messages]) == (True, ["first"])
        assert here.broker.close("nobody was here")

    # -- reach

    def test_a_receipt_waits_until_the_log_has_the_message(self, here):
        with here.lock:
            here.broker.publish("closed", "hello")
            receipt = here.broker.receipt("closed")
        assert receipt()
        assert [each.data for each in here.broker.newest("closed", 5)] == ["hello"]

    def test_members_that_are_to_be_disconnected_first_get_what_was_sent_before(self, here):
        here.broker.publish("r", "first")  # after that, it is known to listen
        here.hears("first")
        here.broker.publish("r", "before")
        here.broker.disconnect("r", 4001, "bye, é", "some member")
        wait_until(lambda: here.disconnects)
        here.hears("first", "before")
        here.broker.disconnect("r", 4002, "", None)
        wait_until(lambda: len(here.disconnects) == 2)
        assert here.disconnects == [
            ("r", 4001, "bye, é", "some member"),
            ("r", 4002, "", None),
        ]
        assert not here.gaps

    # -- who listens

    def test_it_carries_one_rooms_only(self, brokers):
        broker = brokers()
        rooms = Rooms(broker)
        with pytest.raises(ValueError, match="already serves other Rooms"):
            Rooms(broker)
        rooms.close()
        broker.attach(rooms)
        broker.detach()

    def test_members_get_messages_through_it(self, brokers, pair):
        rooms = Rooms(broker := brokers())
        with contextlib.ExitStack() as stack:
            peers = []
            for _ in range(3):
                socket, peer = pair()
                stack.enter_context(rooms["r"].join(socket))
                peers.append(peer)
            rooms["r"].send("hello")
            for peer in peers:
                assert peer.read_frame()[2] == b"hello"
        broker.stop()


class SharedBrokerConformance(BrokerConformance):
    """Of a broker that connects processes."""

    @pytest.fixture
    def there(self, here: Notebook, process: Callable[[], Notebook]) -> Iterator[Notebook]:
        notebook = process()
        notebook.broker.open("r")
        yield notebook
        notebook.broker.close("r")

    def test_all_processes_deliver_the_same_in_the_same_order(self, here, there):
        for number in range(30):
            here.broker.publish("r", f"here {number}")
            there.broker.publish("r", f"there {number}")
        wait_until(lambda: len(here.heard()) == len(there.heard()) == 60)
        assert here.heard() == there.heard()
        for name in ("here", "there"):
            own = [each.data for each in here.heard() if str(each.data).startswith(name)]
            assert own == [f"{name} {number}" for number in range(30)]

    def test_a_position_holds_in_another_process(self, here, there):
        here.broker.publish("r", "one")
        (one,) = here.hears("one")
        there.hears("one")
        here.broker.publish("r", "two")
        there.hears("one", "two")
        assert there.replay(one.position) == (True, there.heard()[1:])

    def test_members_of_all_processes_are_disconnected(self, here, there):
        here.broker.publish("r", "before")  # after that, both are known to listen
        here.hears("before")
        there.hears("before")
        here.broker.disconnect("r", 4001, "bye", "m")
        wait_until(lambda: here.disconnects and there.disconnects)
        assert here.disconnects == there.disconnects == [("r", 4001, "bye", "m")]

    def test_the_end_of_a_room_holds_in_another_process(self, here, there):
        here.broker.publish("r", "one")
        here.hears("one")
        there.hears("one")
        end = there.broker.end_of("r")
        here.broker.publish("r", "two")
        here.hears("one", "two")
        assert here.replay(end) == (True, here.heard()[1:])
        assert not there.closed_rooms

    def test_presence_is_reported_in_other_processes(self, here, there):
        here.broker.join("r", "ann", {"name": "Ann"})
        wait_until(lambda: there.changes)
        assert there.changes == [("r", "join", "ann", {"name": "Ann"})]
        assert there.broker.others("r") == {"ann": {"name": "Ann"}}
        assert (here.changes, here.broker.others("r")) == ([], {})
        here.broker.leave("r", "ann")
        wait_until(lambda: len(there.changes) == 2)
        assert there.changes[1][:3] == ("r", "leave", "ann")
        assert there.broker.others("r") == {}

    def test_a_process_that_opens_a_room_knows_who_is_in_it(self, here, process):
        here.broker.join("r", "ann", {"name": "Ann"})
        assert here.broker.flush(5)
        late = process()
        assert late.broker.members("r") == {"ann": {"name": "Ann"}}
        late.broker.open("r")
        assert late.broker.others("r") == {"ann": {"name": "Ann"}}
        assert late.changes == []
        late.broker.close("r")
