"""What a member that comes back is sent, page by page, and what comes meanwhile after it."""

from __future__ import annotations

import contextlib
import os
import socket as native
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import greenws
from greenws import Rooms, policies
from greenws.brokers.memory import MemoryBroker
from greenws.hub.transport import Transport
from greenws.protocol.deflate import Deflate, Parameters
from greenws.rooms import turns
from greenws.rooms.broker import Message, Page, Replay

from ..support.limits import limit, stays, wait_until
from ..support.wire import Peer


class Paged(MemoryBroker):
    """Replays the pages that it is given."""

    pages: tuple[Page, ...] = ()
    between: Callable[[], object] = staticmethod(lambda: None)

    def resume(self, room: str, since: str) -> Replay:
        return PagedReplay(self)


class PagedReplay(Replay):
    def __init__(self, broker: Paged) -> None:
        self.broker = broker

    def begin(self) -> None:
        pass

    def pages(self) -> Iterator[Page]:
        for page in self.broker.pages:
            yield page
            self.broker.between()


def page(*texts: str, gap: bool = False) -> Page:
    return Page([Message("1-1", text) for text in texts], gap)


@pytest.fixture
def rooms() -> Rooms:
    return Rooms(Paged())


@pytest.fixture
def come_back(rooms: Rooms, pair: Any) -> Iterator[Callable[..., tuple[Any, Peer]]]:
    with contextlib.ExitStack() as stack:

        def come_back(*pages: Page, **options: Any) -> tuple[Any, Peer]:
            rooms.broker.pages = pages
            socket, peer = pair()
            options = {"since": "0-0", **options}
            return stack.enter_context(rooms["r"].join(socket, **options)), peer

        yield come_back


def read(peer: Peer, count: int) -> list[str]:
    return [peer.read_frame()[2].decode() for _ in range(count)]


def test_pages_are_sent_in_order(come_back):
    member, peer = come_back(page("a", "b"), page(), page("c"))
    assert read(peer, 3) == ["a", "b", "c"]
    assert member.is_complete


def test_each_gap_is_sent_where_it_is(come_back):
    pages = page("a"), page("b", gap=True), page("c"), page(gap=True)
    member, peer = come_back(*pages, gap="gap")
    assert read(peer, 5) == ["a", "gap", "b", "c", "gap"]
    assert not member.is_complete


def test_without_a_message_for_gaps_the_member_tells(come_back):
    member, peer = come_back(page("a", gap=True))
    assert read(peer, 1) == ["a"]
    assert not member.is_complete


def test_what_is_sent_meanwhile_comes_after_all_pages(come_back, rooms):
    rooms.broker.between = lambda: rooms["r"].send("live")
    member, peer = come_back(page("a"), page("b"))
    assert read(peer, 4) == ["a", "b", "live", "live"]
    assert member._is_prompt
    assert rooms.stats.delivered == 4


def test_others_run_while_a_client_is_sent_what_it_missed(come_back, monkeypatch):
    monkeypatch.setattr(turns, "SECONDS", 0.0)
    ran: list[int] = []

    def run() -> None:
        for number in range(50):
            ran.append(number)
            gevent.sleep(1e-6)

    running = gevent.spawn(run)
    _, peer = come_back(page(*"abcdefghij"))
    assert len(ran) > 3
    running.kill()
    assert read(peer, 10) == list("abcdefghij")


def test_a_client_that_is_gone_ends_the_replay(rooms, pair):
    rooms.broker.pages = tuple(page("x" * 100_000) for _ in range(100))
    asked: list[int] = []
    socket, peer = pair(write_high_water=1)
    rooms.broker.between = lambda: (asked.append(1), peer.reset())
    with pytest.raises(greenws.ConnectionClosed), rooms["r"].join(socket, since="0-0"):
        raise AssertionError
    assert len(asked) < 100
    assert rooms.stats.members == 0


@pytest.mark.parametrize("source", ["pages", "tail"])
def test_a_client_that_does_not_read_has_little_in_memory(rooms, pair, source):
    texts = [f"{number} {'x' * 20_000}" for number in range(100)]
    socket, peer = pair()
    with contextlib.ExitStack() as stack:
        if source == "tail":
            rooms = Rooms()
            first, _ = pair(write_high_water=None)
            since = stack.enter_context(
                rooms["r"].join(first, policy=policies.drop_oldest())
            ).position
            for text in texts:
                rooms["r"].send(text)
        else:
            rooms.broker.pages, since = (page(*texts),), "0-0"

        def visit() -> None:
            with rooms["r"].join(socket, since=since):
                pass

        visiting = gevent.spawn(visit)
        wait_until(lambda: socket._has_backlog)
        stays(lambda: socket._transport.backlog <= 2**17 + 20_020, 0.05)
        missing = set(texts)
        while missing:
            missing.discard(peer.read_frame()[2].decode())
        visiting.get(timeout=limit())


@pytest.mark.parametrize("source", ["pages", "tail"])
def test_small_messages_are_sent_together(rooms, pair, source):
    texts = [f"{number:020}" for number in range(1000)]
    socket, peer = pair()
    # The kernel counts about 800 bytes for each write: as many writes as messages would not fit.
    with native.socket(fileno=os.dup(socket._transport.fileno)) as same:
        same.setsockopt(native.SOL_SOCKET, native.SO_SNDBUF, 100_000)
    with contextlib.ExitStack() as stack:
        if source == "tail":
            rooms = Rooms(MemoryBroker(history=1000))
            first, _ = pair(write_high_water=None)
            with rooms["r"].join(first, policy=policies.drop_oldest()) as member:
                since = member.position
                for text in texts:
                    rooms["r"].send(text)
                stack.enter_context(rooms["r"].join(socket, since=since))
        else:
            rooms.broker.pages = (page(*texts),)
            stack.enter_context(rooms["r"].join(socket, since="0-0"))
        assert not socket._has_backlog
        assert read(peer, 1000) == texts


@pytest.mark.parametrize("source", ["pages", "tail"])
def test_what_is_sent_together_is_compressed_in_order(rooms, pair, source):
    texts = [f"{number} {'x' * number}" for number in range(200)]
    server, client = deflating_pair()
    with contextlib.ExitStack() as stack:
        if source == "tail":
            rooms = Rooms(MemoryBroker(history=1000))
            first, _ = pair(write_high_water=None)
            since = stack.enter_context(rooms["r"].join(first)).position
            for text in texts:
                rooms["r"].send(text)
        else:
            rooms.broker.pages, since = (page(*texts[:99]), page(*texts[99:])), "0-0"
        stack.enter_context(rooms["r"].join(server, since=since))
        assert [client.receive() for _ in texts] == texts
    server._abandon(1001)
    client._abandon(1001)


def deflating_pair() -> list[greenws.WebSocket]:
    """Both ends of a connection that compresses, each message with what came before it."""
    config = greenws.Config(deflate_threshold=0)
    return [
        greenws.WebSocket(
            Transport(end, gevent.get_hub(), None, None),
            config,
            client=is_client,
            deflate=Deflate(Parameters(), config, is_client),
        )
        for is_client, end in zip((False, True), gevent.socket.socketpair(), strict=True)
    ]


def test_a_client_that_is_lost_while_nothing_is_taken_ends_the_replay(rooms, pair):
    rooms.broker.pages = (page(*["x" * 100_000] * 100),)
    socket, peer = pair()

    def visit() -> None:
        with pytest.raises(greenws.ConnectionClosed), rooms["r"].join(socket, since="0-0"):
            raise AssertionError

    visiting = gevent.spawn(visit)
    wait_until(lambda: socket._has_backlog)
    peer.reset()
    visiting.get(timeout=limit())
