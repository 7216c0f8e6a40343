"""Lists of waiters by descriptor. (Compiled modules use the C form; test_polling.py covers it.)"""

from __future__ import annotations

import pytest

from greenws.hub import slots


def test_a_slot_holds_a_waiter_or_nothing():
    waiter = object()
    waiters = [None, waiter]
    assert slots.waiter_at(waiters, 0) is None
    assert slots.waiter_at(waiters, 1) is waiter


def test_a_slot_beyond_the_list_is_an_error():
    with pytest.raises(IndexError):
        slots.waiter_at([None], 1)
