"""How processes share a listener."""

from __future__ import annotations

import gc
import os

import pytest

from greenws.server.balance import Balance


class Owner:
    pass


def accepting(count):
    """``count`` shares that accept, and their owners."""
    balance = Balance()
    owners = [Owner() for _ in range(count)]
    shares = [balance.share(owner) for owner in owners]
    for share in shares:
        share.begin()
    return balance, shares, owners


def test_one_process_alone_always_accepts():
    _, (share,), _ = accepting(1)
    share.add(1_000_000)
    assert share.may_accept()


@pytest.mark.parametrize("eager", [0, 3])
def test_nobody_gets_far_ahead_of_the_others(eager):
    """Whoever wakes first accepts all that it may."""
    _, shares, _ = accepting(4)
    order = [shares[eager], *shares]
    for _number in range(400):
        next(share for share in order if share.may_accept()).add(1)
    counts = [share.count for share in shares]
    assert sum(counts) == 400
    assert max(counts) <= 1.3 * min(counts)


def test_a_process_that_lost_connections_gets_the_next(monkeypatch):
    _, shares, _ = accepting(3)
    for share in shares:
        share.add(50)
    shares[1].add(-20)
    assert [share.may_accept() for share in shares] == [False, True, False]


def test_nobody_waits_for_long_for_one_who_is_busy(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    _, (ours, other), _ = accepting(2)
    ours.add(10)
    waited = 0
    while not ours.may_accept():
        now += 0.001
        waited += 1
    assert 50 <= waited <= 200
    for _number in range(100):  # not again for each one
        now += 0.001
        assert ours.may_accept()
    now += 10
    assert not ours.may_accept()  # it tries again, with all its patience
    now += 10
    assert not ours.may_accept()


def test_one_who_accepts_no_more_does_not_count():
    _, (ours, other), _ = accepting(2)
    ours.add(10)
    assert not ours.may_accept()
    other.end()
    assert ours.may_accept()


def test_places_are_free_again_with_their_owners():
    balance, shares, owners = accepting(3)
    shares[0].add(5)
    shares[1].add(7)
    del owners[0]
    gc.collect()
    assert list(balance.counts_of_others(2)) == [7]
    new = balance.share(owner := Owner())
    assert new is not None and new.count == 0 and owner is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_processes_see_each_others_connections():
    balance, (ours, other), owners = accepting(2)
    pid = os.fork()
    if pid == 0:
        other.add(41)
        other.add(1)
        owners.clear()  # frees no place of the parent's
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert list(balance.counts_of_others(0)) == [42]
    assert ours.count == 0
