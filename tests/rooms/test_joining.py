"""``room.join()`` without ``with``."""

from __future__ import annotations

import contextlib
import gc

import pytest

from greenws import Rooms
from greenws.rooms.member import Member


def test_a_join_without_with_is_logged(pair, error_log):
    room = Rooms()["garden"]
    room.join(pair()[0])
    gc.collect()
    (record,) = error_log.take()
    assert "nobody has joined the room 'garden'" in record.getMessage()
    assert not room.members


def test_what_join_returns_is_no_member(pair):
    joining = Rooms()["garden"].join(pair()[0])
    with pytest.raises(AttributeError, match="no position.*with room.join"):
        assert joining.position
    with joining as member:
        assert isinstance(member, Member)


def test_a_block_is_left_as_it_was_entered(pair, error_log):
    room = Rooms()["garden"]
    with contextlib.suppress(ZeroDivisionError), room.join(pair()[0]):
        assert len(room) == 1
        raise ZeroDivisionError
    assert len(room) == 0
    gc.collect()
    assert not error_log.take()
