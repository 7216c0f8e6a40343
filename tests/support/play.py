"""A play: clients that move between processes at random, and others who talk, as things go wrong.

Each client hears every message once, those of one process in the order in which that sent them, and
all of them since it came first, unless it is told of a gap in front of what is missing. When all is
quiet again, all processes agree who is in the room, and each member was told who is there. Who
waits until the log has a message is told that it has.

Whoever judges looks only at what the clients have read, and at what was sent. Of a process that is
killed, what nobody ever heard may be lost with it, unless its sender was told that the log has it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import string
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from operator import itemgetter
from random import Random
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from greenws import ConnectionClosed
from greenws.brokers import BrokerUnavailable

from .limits import limit, wait_until
from .redis_workers import Worker
from .wire import CLOSE, Peer, close_frame

__all__ = ["SECONDS", "Line", "Play", "run", "seeds"]

CLIENTS = 8
SENDERS = 2
SECONDS = float(os.environ.get("GREENWS_RANDOM_SECONDS", "2.5"))  # for which things go wrong
# Of processes, a letter each; a long run kills dozens.
NAMES = string.ascii_lowercase + "αβγδεζηθικλμνξοπρστυφχψω" + "бвгджзийклмнпртуфцчшщъыьэюя"
GAP = "GAP"
HELLO = "hello"
HEARS = "hears"  # begins a line of a diary


def seeds(usual: str) -> Iterable[int]:
    """``GREENWS_RANDOM_SEEDS=10-40`` gives others than the usual ones. A seed decides what everyone
    does, not what happens at the same moment: one that failed may pass the next time."""
    first, _, last = os.environ.get("GREENWS_RANDOM_SEEDS", usual).partition("-")
    return range(int(first), int(last or first) + 1)


def run(plays: list[Play], trouble: Callable[[Random], None]) -> None:
    """Lets some plays run at once, while trouble comes again and again; and judges them."""
    random = plays[0].random("trouble")
    try:
        while plays[0].now < SECONDS:
            gevent.sleep(random.uniform(0, 1.0))
            trouble(random)
        faults = [play.settle() for play in plays]
    finally:
        for play in plays:
            play.end()
    for play, found in zip(plays, faults, strict=True):
        print(play.summary)
        assert not found, play.report(found)


class Line:
    """The way from a process to Redis, on which things may take their time, or that is cut."""

    def __init__(self, port: int) -> None:
        self.lag = 0.0  # seconds
        self._redis = ("127.0.0.1", port)
        self._ends: set[Any] = set()
        self._carriers = Pool()
        self._server = StreamServer(("127.0.0.1", 0), self._connect, spawn=self._carriers)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.server_port}/0"
        self.is_cut = False

    def _connect(self, near: Any, _: Any) -> None:
        with contextlib.suppress(OSError), near:
            if self.is_cut:
                return
            with gevent.socket.create_connection(self._redis) as far:
                ends = {near, far}
                self._ends |= ends
                there = self._carriers.spawn(self._carry, near, far)
                self._carry(far, near)
                there.join()
                self._ends -= ends

    def _carry(self, source: Any, target: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.lag:
                    gevent.sleep(self.lag)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(gevent.socket.SHUT_RDWR)

    def cut(self) -> None:
        """Also what is on its way."""
        self.is_cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(gevent.socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False

    def lead_to(self, port: int) -> None:
        """To another Redis from now on."""
        self._redis = ("127.0.0.1", port)
        self.cut()
        self.mend()

    def close(self) -> None:
        self.cut()
        self._server.stop()
        self._carriers.join(limit())


class Play:
    """Everybody who takes part, and what happens to all of them."""

    def __init__(
        self,
        seed: int,
        workers: dict[str, Worker],
        lines: dict[str, Line],
        pair: Any,
        room: str = "r",
        clients: int = CLIENTS,
    ) -> None:
        self.seed = seed
        self.room = room
        self.workers = workers  # by name: a letter
        self.lines = lines
        self.pair = pair
        self.dead: set[str] = set()  # names of processes that were killed
        self.begin = time.monotonic()
        self.is_over = Event()  # everybody stays where they are, or goes somewhere to stay
        self.sent: dict[str, list[float]] = {name: [] for name in workers}  # and when
        self.confirmed: dict[str, int] = {}  # how many messages of a process are surely in the log
        self.diary: list[tuple[float, str]] = []
        self.clients = [Traveller(self, f"client {number}") for number in range(clients)]
        self.waiting: list[tuple[str, gevent.Greenlet[..., None]]] = []  # until the log has it
        self.greenlets: list[gevent.Greenlet[..., None]] = [
            *(gevent.spawn(self._send_some, number) for number in range(SENDERS)),
            *(gevent.spawn(self._trouble, name) for name in lines),
        ]

    @property
    def now(self) -> float:
        return time.monotonic() - self.begin

    def random(self, who: str) -> Random:
        return Random(f"{self.seed} {who}")

    def send(self, where: str, wait: bool = False) -> None:
        number = len(self.sent[where])
        self.sent[where].append(self.now)
        self.workers[where].send(f"{where}{number}", room=self.room, wait=wait)
        if wait:  # and so is what it sent before
            self.confirmed[where] = max(self.confirmed.get(where, 0), number + 1)

    def _send_and_wait(self, where: str) -> None:
        if where not in self.workers:
            return
        try:
            self.send(where, wait=True)
        except BrokerUnavailable:
            if where not in self.dead:
                raise

    def _send_some(self, number: int) -> None:
        random = self.random(f"sender {number}")
        for number in itertools.count():
            if self.is_over.is_set():
                return
            where = random.choice(list(self.workers))
            if number % 10:
                self.send(where)
            else:
                self.waiting.append((where, gevent.spawn(self._send_and_wait, where)))
            gevent.sleep(random.uniform(0, 0.03))

    def _trouble(self, name: str) -> None:
        random = self.random(f"line of {name}")
        line = self.lines[name]
        while not self.is_over.wait(random.uniform(0, 0.5)):
            if random.random() < 0.5:
                line.lag = random.uniform(0, 0.2)
                self.note(f"{name} reaches Redis {line.lag:.3f} s later")
                self.is_over.wait(random.uniform(0, 0.5))
                line.lag = 0
                self.note(f"{name} reaches Redis at once")
            elif random.random() < 0.5:
                line.cut()
                self.note(f"{name} is cut off from Redis")
                self.is_over.wait(random.uniform(0, 0.3))
                line.mend()
                self.note(f"{name} reaches Redis again")

    def note(self, what: str) -> None:
        self.diary.append((self.now, what))

    def kill(self, name: str) -> None:
        """A process, of which nothing more reaches anybody."""
        self.note(f"{name} is killed")
        self.dead.add(name)
        worker = self.workers.pop(name)
        for client in self.clients:
            client.lose(name)
        worker.die()

    def add(self, worker: Worker) -> None:
        name = next(each for each in NAMES if each not in self.sent)
        self.note(f"{name} begins")
        self.sent[name] = []
        self.workers[name] = worker

    def settle(self) -> dict[Traveller | None, list[str]]:
        """What is wrong when all is quiet again, with a client or in general."""
        self.is_over.set()
        gevent.joinall(self.greenlets)
        faults: dict[Traveller | None, list[str]] = defaultdict(list)
        if not happens(lambda: all(each.is_idle for each in self.workers.values())):
            faults[None].append("not all processes have found Redis again")
        if found := self._wrongly_waiting():
            faults[None] += found
        for client in self.clients:
            if not happens(lambda client=client: client.stays):
                faults[client].append("it is not in the room again")
        # Whatever comes at all comes before the second of these.
        for _ in range(2):
            for where in self.workers:
                self.send(where)
            happens(lambda: all(client.has_heard_the_last for client in self.clients))
        for client in self.clients:
            if found := client.faults():
                faults[client] += found
        wrong = self._wrong_members()
        for client in self.clients[::2]:
            client.leave()
        if wrong := wrong or self._wrong_members():
            faults[None] += wrong
        return faults

    def _wrongly_waiting(self) -> list[str]:
        """Sends that have failed, or that still wait for a log which has all messages."""
        waiting = [each for where, each in self.waiting if where not in self.dead]
        if happens(lambda: all(each.ready() for each in waiting)):
            failed = [each for each in waiting if not each.successful()]
            return [f"a send that waited: {each.exception!r}" for each in failed]
        return ["a send waits in vain"]

    def _wrong_members(self) -> list[str]:
        there: dict[str, dict[str, Any]] = {}

        def agree() -> bool:
            members = {key: client.name for client in self.clients for key in client.inside}
            there.clear()
            for name, each in self.workers.items():
                members_there = each.rooms[self.room].members
                there[name] = {id_: info["name"] for id_, info in members_there}
            there["in the room"] = members
            return all(each == members for each in there.values())

        if happens(agree):
            return self._wrongly_told()
        return [f"{name}: {sorted(each.values())}, {each}" for name, each in there.items()]

    def _wrongly_told(self) -> list[str]:
        """While a member is connected, the changes that it was sent add up to who is present."""
        faults = []
        for client in self.clients:
            for key in list(client.inside):

                def is_right(client: Traveller = client, key: str = key) -> bool:
                    members = {each for other in self.clients for each in other.inside}
                    return key not in members or client.told[key] == members

                if not happens(is_right):
                    faults.append(f"{client.name} was told of {client.told[key]}")
        return faults

    def end(self) -> None:
        gevent.killall([*self.greenlets, *(each for _, each in self.waiting)])
        for client in self.clients:
            client.end()

    def reached(self, name: str) -> int:
        """How many messages of a process are not lost with it."""
        if name not in self.dead:
            return len(self.sent[name])
        labels = (label for client in self.clients for label in client.heard)
        heard = max((int(each[1:]) + 1 for each in labels if each.startswith(name)), default=0)
        return max(heard, self.confirmed.get(name, 0))

    @property
    def summary(self) -> str:
        return (
            f"seed {self.seed}: {sum(map(len, self.sent.values()))} messages in {self.now:.1f} s, "
            f"{sum(client.visits for client in self.clients)} visits, "
            f"{len(self.dead)} killed, "
            f"{sum(client.heard.count(GAP) for client in self.clients)} gaps, after "
            f"{sum(client.gaps_without_a_hole() for client in self.clients)} nothing was missing"
        )

    def report(self, faults: dict[Traveller | None, list[str]]) -> str:
        lines = [self.summary]
        for client, found in faults.items():
            lines += [f"{client.name if client else 'all'}: {each}" for each in found[:5]]
            if len(found) > 5:
                lines.append(f"... and {len(found) - 5} more")
        for client in faults:
            lines += ["", *self._history(client)]
        text = "\n".join(lines)
        for name, each in self.workers.items():
            for node in each.nodes:
                text = text.replace(node.process.origin, name)
        return text

    def _history(self, client: Traveller | None) -> list[str]:
        """A line for each thing that happened, or for what was heard in a row; without a client,
        who came and went."""
        happened = list(self.diary)
        for each in self.clients if client is None else ():
            happened += [
                (at, f"{each.name} {what}") for at, what in each.diary if HEARS not in what
            ]
        if client is not None:
            happened += client.diary
        lines: list[str] = []
        in_a_row = 0
        for at, what in sorted(happened, key=itemgetter(0)):
            is_heard = what.startswith(HEARS)
            if is_heard and 0 < in_a_row < 5:
                lines[-1] += what.removeprefix(HEARS)
            else:
                lines.append(f"{at:7.3f} {what}")
            in_a_row = in_a_row % 5 + 1 if is_heard else 0
        return [f"{client.name if client else 'all'} of seed {self.seed}:", *lines]


class Traveller:
    """Goes from process to process; what it knows is what it has read."""

    def __init__(self, play: Play, name: str) -> None:
        self.play = play
        self.name = name
        self.random = play.random(name)
        self.diary: list[tuple[float, str]] = []
        self.visits = 0
        # what the client knows
        self.last: str | None = None
        self.first: dict[str, int] = {}  # number of the first message that it must hear, by process
        self.heard: list[str] = []
        # what its handlers know: the ids of the members that it is now
        self.inside: set[str] = set()
        # who is there, as each of these was told: when it joined, and since then
        self.told: dict[str, set[str]] = {}
        self.handlers: list[gevent.Greenlet[..., None]] = []
        self.where: dict[Any, tuple[str, Any]] = {}  # the process and the socket of each of these
        self.connection: tuple[Peer, gevent.Greenlet[..., None]] | None = None
        self.life = gevent.spawn(self._live)

    def _live(self) -> None:
        random = self.random
        while True:
            self._come()
            # Often it is gone before it was in, or goes where others have not been yet.
            is_over = self.play.is_over.wait(random.uniform(0, random.choice((0.1, 1.2))))
            if is_over and self.connection is not None and not self.connection[1].dead:
                return
            self.leave()
            gevent.sleep(random.uniform(0, 0.2))

    def _come(self) -> None:
        names = list(self.play.workers)
        weights = (5, 4, *[1] * (len(names) - 2))  # the last is often empty
        (where,) = self.random.choices(names, weights[: len(names)])
        socket, peer = self.play.pair()
        self.visits += 1
        self._note(f"joins {where} since {self.last}")
        # A process may notice late that a connection is over.
        lag = self.random.choice((0, self.random.uniform(0, 0.3)))
        self.handlers = [each for each in self.handlers if not each.dead]
        self.handlers.append(gevent.spawn(self._handle, where, socket, self.last, lag))
        self.where[self.handlers[-1]] = where, socket
        self.connection = peer, gevent.spawn(self._read, peer)

    def lose(self, name: str) -> None:
        """A process is killed, with the handlers there."""
        for handler in self.handlers:
            where, socket = self.where[handler]
            if where == name:
                handler.kill()
                socket._abandon(1001)  # which one that has not begun yet does not do

    def leave(self) -> None:
        if self.connection is None:
            return
        peer, reader = self.connection
        self.connection = None
        if self.random.random() < 0.5 and not reader.dead:
            self._note("says goodbye")
            peer.send(close_frame())
            reader.join(limit())
        else:
            self._note("breaks off")
        reader.kill()
        peer.close()

    def _handle(self, where: str, socket: Any, since: str | None, lag: float) -> None:
        play = self.play
        if where not in play.workers:
            socket._abandon(1001)
            return
        room = play.workers[where].rooms[play.room]
        try:
            early: list[tuple[str, str]] | None = []  # told before the block begins
            who: set[str] = set()

            def note(kind: str, id_: str, info: dict[str, Any]) -> None:
                if early is not None:
                    early.append((kind, id_))
                else:
                    who.add(id_) if kind == "join" else who.discard(id_)

            with room.join(socket, since=since, gap=GAP, presence=note, name=self.name) as member:
                self._note(f"is in {where} as {member.id}, at {member.position}")
                self.inside.add(member.id)
                who |= {each.id for each in member.present}
                told, early = early, None
                for kind, id_ in told:
                    note(kind, id_, {})
                self.told[member.id] = who
                try:
                    if since is None:
                        counts = [f"{name}{len(sent)}" for name, sent in play.sent.items()]
                        socket.send(" ".join([member.position, HELLO, *counts]))
                    self._wait_for_the_end(socket, lag)
                finally:
                    self.inside.discard(member.id)
        except ConnectionClosed:
            self._note(f"was gone before it was in {where}")
        finally:
            socket._abandon(1001)
            self._note(f"is out of {where}")

    def _wait_for_the_end(self, socket: Any, lag: float) -> None:
        try:
            for _ in socket:
                pass
        except ConnectionClosed:
            pass
        gevent.sleep(lag)

    def _read(self, peer: Peer) -> None:
        peer.sock.settimeout(None)
        while True:
            try:
                _, opcode, payload = peer.read_frame()
            except (EOFError, OSError):
                self._note("is cut off")
                return
            if opcode == CLOSE:
                self._note(f"is closed with {int.from_bytes(payload[:2], 'big')}")
                return
            self._take(payload.decode())

    def _take(self, text: str) -> None:
        if text == GAP:
            self._note(f"{HEARS} {GAP}")
            self.heard.append(GAP)
            return
        self.last, label, *counts = text.split(" ")
        self._note(f"{HEARS} {label}@{self.last}")
        if label == HELLO:
            self.first = {count[0]: int(count[1:]) for count in counts}
        else:
            self.heard.append(label)

    def _note(self, what: str) -> None:
        self.diary.append((self.play.now, what))

    @property
    def stays(self) -> bool:
        """All its handlers have ended, except the one that it is connected to."""
        going = [each for each in self.handlers if not each.dead]
        return self.life.dead and len(going) == 1 and len(self.inside) == 1

    @property
    def has_heard_the_last(self) -> bool:
        play = self.play
        return all(f"{each}{len(play.sent[each]) - 1}" in self.heard for each in play.workers)

    def faults(self) -> list[str]:
        return [
            fault for name, sent in self.play.sent.items() for fault in self._faults_of(name, sent)
        ]

    def _faults_of(self, name: str, sent: list[float]) -> Iterable[str]:
        """What is wrong with the messages that one process sent."""

        def when(number: int) -> str:
            return f"{name}{number} (sent at {sent[number]:.3f})"

        expected = self.first.get(name, 0)
        heard: set[int] = set()
        was_told = False
        for label in self.heard:
            if label == GAP:
                was_told = True
            if not label.startswith(name):
                continue
            number = int(label[1:])
            if number in heard:
                yield f"{when(number)} came twice"
            elif heard and number < expected:
                yield f"{when(number)} came after {when(expected - 1)}"
            elif number > expected and not was_told:
                yield f"{when(expected)} and what follows is missing before {when(number)}"
            heard.add(number)
            # Before its first message, it may have heard what was on its way already.
            expected = number + 1 if len(heard) == 1 else max(expected, number + 1)
            was_told = False
        if expected < self.play.reached(name):
            yield f"{when(expected)} and all that follows is missing"

    def gaps_without_a_hole(self) -> int:
        """It may only have been unknown what was missing."""
        expected = dict(self.first)
        has_hole = [True]
        for label in self.heard:
            if label == GAP:
                has_hole.append(False)
                continue
            name, number = label[0], int(label[1:])
            has_hole[-1] |= number > expected.get(name, number)
            expected[name] = max(expected.get(name, 0), number + 1)
        return has_hole.count(False)

    def end(self) -> None:
        self.life.kill()
        if self.connection is not None:
            self.leave()
        gevent.joinall(self.handlers, timeout=limit())
        gevent.killall(self.handlers)


def happens(condition: Callable[[], Any]) -> bool:
    try:
        wait_until(condition)
    except AssertionError:
        return False
    return True
