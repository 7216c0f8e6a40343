"""A member's queue and cursor, without a room: what it reports, and what waits."""

from __future__ import annotations

import threading
from typing import Any

import gevent
import pytest

from greenws import policies
from greenws.protocol.shared import SharedMessage
from greenws.rooms.broker import Cursor, Entry
from greenws.rooms.member import Member
from greenws.rooms.room import Stats

from ..support.limits import wait_until
from ..support.wire import CLOSE


class Audience:
    """Records what a member reports."""

    name = "r"

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stats = Stats()
        self.prompt: set[Member] = set()
        self.full: set[Member] = set()
        self.removed: list[Member] = []

    def settle(self, member: Member) -> None:
        (self.prompt.add if member._is_prompt else self.prompt.discard)(member)

    def hold_up(self, member: Member) -> None:
        self.full.add(member)

    def let_go(self, member: Member) -> None:
        self.full.discard(member)

    def remove(self, member: Member) -> None:
        self.removed.append(member)

    def position_of(self, member: Member) -> str:
        return "7-0"


class Behind(Cursor):
    """Everything up to an entry is not new."""

    is_level = False

    def __init__(self, until: str) -> None:
        self.until = until

    def advance(self, entry: Entry) -> bool:
        is_new, self.is_level = self.is_level, entry.position == self.until
        return is_new

    def position(self, position: str) -> str:
        return f"{position}+own"


def stamp(position: str, data: Any) -> str:
    return f"{position} {data}"


@pytest.fixture
def audience() -> Audience:
    return Audience()


@pytest.fixture
def make(pair: Any, audience: Audience) -> Any:
    def make(policy: Any = None, **options: Any) -> Any:
        socket, peer = pair(**options)
        member = Member(None, socket, {}, policy or policies.close(), audience)
        audience.settle(member)
        return member, peer

    return make


def fill(member: Member, count: int = 200) -> list[str]:
    texts = [f"{number} ".ljust(5000, ".") for number in range(count)]
    for text in texts:
        member._take(SharedMessage(text), text)
    return texts


def test_a_member_has_a_queue_only_while_it_lags(make, audience):
    member, peer = make()
    assert (member._is_prompt, member.waiting, audience.prompt) == (True, 0, {member})
    texts = fill(member)
    assert member.is_lagging
    assert (member._is_prompt, audience.prompt, audience.stats.lagging) == (False, set(), 1)
    assert [peer.read_frame()[2].decode() for _ in texts] == texts
    wait_until(lambda: member._is_prompt)
    assert (audience.prompt, audience.stats.lagging, member.waiting) == ({member}, 0, 0)


def test_a_slow_member_is_closed_and_removed_before_its_close_is_sent(make, audience):
    member, peer = make(policies.close(limit=3))
    fill(member, 100)
    assert member in audience.removed
    assert (audience.stats.lagging, member.waiting) == (0, 0)
    while (last := peer.read_frame())[1] != CLOSE:
        pass
    assert last[2] == b"\x03\xf5You read too slowly."


def test_a_member_that_is_sent_what_it_missed_is_neither_prompt_nor_lagging(make, audience):
    member, _ = make()
    member._begin_replay(None)
    message = SharedMessage("live")
    assert member._receive(Entry("8-0", "live"), message, stamp)
    assert (member._is_prompt, member.is_lagging, member.waiting) == (False, False, 1)
    assert (member._next_waiting(), member._next_waiting()) == ("live", None)
    member._end_replay()
    assert member._is_prompt
    assert audience.prompt == {member}


def test_a_cursor_decides_what_is_new_and_stamps_what_is_its_own(make, audience):
    member, peer = make()
    member._begin_replay(Behind("8-0"))
    assert member.position == "7-0+own"
    for number in (8, 9):
        position = f"{number}-0"
        shared = SharedMessage(stamp(position, "text"))
        is_new = member._receive(Entry(position, "text"), shared, stamp)
        assert is_new == (number == 9)
    assert member._next_waiting() == "9-0 text"
    member._end_replay()
    assert member._is_prompt
    assert member.position == "7-0"
    assert peer.is_silent(0.01)


def test_a_member_does_not_get_what_excludes_it_though_its_cursor_moves_on(make):
    member, peer = make()
    member._begin_replay(Behind("8-0"))
    member._end_replay()
    message = SharedMessage("8-0 text")
    assert not member._receive(Entry("8-0", "text", member.socket), message, stamp)
    assert member._is_prompt
    assert not member._receive(Entry("9-0", "text", member.socket), message, stamp)
    assert peer.is_silent(0.01)


def test_an_entry_without_a_message_moves_the_cursor_and_sends_nothing(make):
    member, peer = make()
    member._begin_replay(Behind("8-0"))
    member._end_replay()
    assert not member._is_prompt
    assert not member._receive(Entry("8-0", None), SharedMessage(""), stamp)
    assert member._is_prompt
    assert peer.is_silent(0.01)


def test_a_member_with_the_policy_block_holds_up_senders_while_its_queue_is_full(make, audience):
    member, peer = make(policies.block(timeout=60, limit=5))
    texts = fill(member, 60)
    assert audience.full == {member}
    assert 0 < member._make_room() <= 60
    for _ in texts:
        peer.read_frame()
    wait_until(lambda: not audience.full)
    assert member._make_room() == 0


def test_a_member_that_holds_up_senders_for_too_long_is_closed(make, audience):
    member, _ = make(policies.block(timeout=0.02, limit=5))
    fill(member, 60)
    gevent.sleep(0.03)
    assert member._make_room() == 0
    assert (audience.full, audience.stats.closed) == (set(), 1)
