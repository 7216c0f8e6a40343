"""``Leases``: who is in a room, beside its log.

Each process asserts its members in a hash for each room, and withdraws them. A lease ends
``presence_timeout`` after its process does: a process that does not renew its key of life is
*dead*, and the first process that notices withdraws its members. The members of a room have a
version. Changes are published with the versions that they make, so a process notices when it has
missed some. Then, and after each outage, it reads who is there, reports the difference, and asserts
its own members again. So presence needs no ordered or reliable delivery: comparing corrects it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import redis

from .. import turns
from ..broker import JOIN, LEAVE
from . import scripts
from .errors import is_redirect
from .origins import Gone
from .process import Process
from .requests import Other, Snapshot, take_snapshot

__all__ = ["BEAT", "Leases", "MovedLeases", "renew_alive_key"]

_REAP = "bury"  # the leave of a member whose process died, published by another process
# Parts of presence_timeout: how long the key of life lasts, and how often it is renewed and the
# others' are checked. Together, dead members are removed within presence_timeout.
_LEASE, BEAT = 0.75, 0.25
_BATCH = 500  # rooms, or changes of a room, in one command
_LEFT = 1000  # leaves that are looked at again, of a process
_CHANGE = scripts.load("presence")
_RENEW = scripts.load("renew")

_Any = TypeVar("_Any")

_logger = logging.getLogger("greenws.brokers.redis")


class _Published(NamedTuple):
    """Changes of a room's members, with the first and last version that they make."""

    first: int
    last: int
    is_new: bool
    """Whether there was no version before."""
    changes: list[tuple[str, str, str, dict[str, Any]]]
    """(kind, member, origin, info)"""

    def follows(self, version: str) -> bool:
        """Whether no change between ``version`` and these is missing."""
        return self.first == int(version or "0") + 1 or (self.is_new and not version)


class _Room:
    """The members of a room that is open here."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.mine: dict[str, str] = {}  # values, as stored in Redis
        self.others = {} if snapshot is None else snapshot.others
        self.version = "" if snapshot is None else snapshot.version
        self.newest = 0  # a version that Redis is known to have reached
        # Changes of our members that were sent, and not received as published yet. The Redis that
        # took one may have been replaced by another, which has the version from before it.
        self.unconfirmed: set[tuple[str, str]] = set()
        # Published changes that can only be applied after the members were read.
        self.published: list[_Published] = []


class MovedLeases(NamedTuple):
    """The state of a room that moves to another node of a cluster."""

    room: _Room | None
    pending: dict[str, str | None] | None


def renew_alive_key(process: Process, key: str) -> bool:
    """Renews this process's key of life; returns whether the key was still there.

    Raises:
        redis.RedisError, OSError: Redis is out of reach.
    """
    age = max(1, int(process.options.presence_timeout * _LEASE * 1000))
    known = process.commands.run(lambda client: client.set(key, "1", px=age, get=True), urgent=True)
    return known is not None


class Leases:
    """``wake``: makes a greenlet call ``work`` soon; may be called from any thread. ``gone``: the
    processes that died, for positions."""

    def __init__(self, process: Process, wake: Callable[[], None], gone: Gone) -> None:
        self.pending: dict[str, dict[str, str | None]] = {}  # by room and member: value, or None
        self.stale: set[str] = set()  # open rooms whose members must be read
        self.next_beat = 0.0
        # Leaves that were sent lately, by room and member, with the time. A Redis that takes the
        # place of another may have the members still, and nobody else withdraws them.
        self._left: dict[tuple[str, str], float] = {}
        self._process = process
        self._wake = wake
        self._gone = gone
        self._rooms: dict[str, _Room] = {}
        self._has_beaten = False
        self._forgotten = 0  # how many times a cluster had lost this process's key of life
        self._grace_until = 0.0  # no process counts as dead before this time
        self._next_renewal = 0.0
        options = process.options
        self._key_age = max(options.expiry, int(4 * options.presence_timeout))

    # -- rooms

    def open(self, room: str, snapshot: Snapshot | None) -> None:
        """``snapshot``: None if Redis is out of reach."""
        self._rooms[room] = _Room(snapshot)
        if snapshot is None:
            self.stale.add(room)
            return
        for member in snapshot.mine:  # they left by a master that was replaced since, or just now
            self._change(room, member, None)

    def close(self, room: str) -> None:
        self._rooms.pop(room, None)
        self.stale.discard(room)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        return {
            member: other.info
            for member, other in self._rooms[room].others.items()
            if other.is_alive
        }

    def snapshot(self, room: str, urgent: bool = False, begin_log: bool = False) -> Snapshot:
        """``begin_log``: makes the log if there is none and Redis accepts writes.

        Raises:
            redis.RedisError, OSError: Redis is out of reach.
        """
        process = self._process
        age = process.options.expiry if begin_log else 0
        found = process.run_for(
            room,
            lambda client: take_snapshot(client, process.keys, process.origin, room, age),
            urgent,
        )
        if process.link is not None and found.others:
            dead = process.link.dead({other.origin for other in found.others.values()})
            for key, other in found.others.items():
                found.others[key] = other._replace(is_alive=other.origin not in dead)
        process.clock.set(found.seconds, found.micros)
        return found

    # -- the members of this process

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        value = f"{self._process.origin} {json.dumps(info)}"
        self._rooms[room].mine[member] = value
        self._change(room, member, value)

    def leave(self, room: str, member: str) -> None:
        self._rooms[room].mine.pop(member, None)
        self._change(room, member, None)

    def _change(self, room: str, member: str, value: str | None) -> None:
        with self._process.lock:
            self.pending.setdefault(room, {})[member] = value
            self._left.pop((room, member), None)
        self._wake()

    # -- the work of a greenlet

    def work(self) -> None:
        """Writes changes of this process's members to Redis, and reads rooms that are stale.

        Raises:
            redis.RedisError, OSError: Redis is out of reach.
        """
        if time.monotonic() >= self.next_beat:
            self._beat()
        self._send_pending()
        for room in list(self.stale):
            self._refresh(room)
            turns.end_if_over()

    def prove_alive(self) -> bool:
        """Renews this process's key of life; False if it had expired. Fails on a Redis that accepts
        no writes."""
        process, link = self._process, self._process.link
        if link is None:
            return renew_alive_key(process, process.keys.alive(process.origin))
        renew_alive_key(process, process.keys.probe(link.probe(process)))
        forgotten = link.prove_alive()
        was_alive = forgotten == self._forgotten
        self._forgotten = forgotten
        return was_alive

    def come_back(self) -> None:
        """Called when Redis is back. Other processes need a moment to renew their keys of life."""
        self._grace_until = time.monotonic() + self._process.options.presence_timeout
        self.next_beat = 0.0
        self._wake()

    def _beat(self) -> None:
        now = time.monotonic()
        was_alive = self.prove_alive()
        if self._has_beaten and not was_alive:  # others may have withdrawn its members as dead
            self.stale |= set(self._rooms)
        self._has_beaten = True
        self.check(list(self._rooms))
        self._check_left()
        origins = {
            other.origin for room in list(self._rooms.values()) for other in room.others.values()
        }
        dead = self._dead_of(origins)
        self._revive(dead)
        if now >= self._grace_until:
            self._reap(dead)
        self._gone.check(self._dead_of)
        if now >= self._next_renewal:
            self._next_renewal = now + self._process.options.expiry / 3
            self._renew()
        options = self._process.options
        self.next_beat = now + min(options.presence_timeout * BEAT, options.expiry / 3)

    def check(self, rooms: list[str]) -> None:
        """Checks whether changes of some rooms were missed.

        Raises:
            redis.RedisError, OSError: Redis is out of reach.
        """
        for some in _batches(rooms):
            versions = self._run_all(
                [("HGET", self._process.keys.members(room), "") for room in some]
            )
            for name, found in zip(some, versions, strict=True):
                if isinstance(found, Exception) and is_redirect(found):
                    continue
                room = self._rooms.get(name)
                version = found.decode() if isinstance(found, bytes) else ""
                if room is not None and (version != room.version or room.unconfirmed):
                    room.newest = int(version or "0")
                    self.stale.add(name)
            turns.end_if_over()
        if self.stale:
            self._wake()

    def _check_left(self) -> None:
        """Withdraws members again that left, and that Redis has, of rooms that are closed here.
        Open rooms have a version, which tells."""
        oldest = time.monotonic() - 2 * self._process.options.presence_timeout
        with self._process.lock:
            self._left = {each: sent for each, sent in self._left.items() if sent > oldest}
            left = [each for each in self._left if each[0] not in self._rooms]
        for some in _batches(left):
            found = self._run_all(
                [("HEXISTS", self._process.keys.members(room), member) for room, member in some]
            )
            with self._process.lock:
                for (room, member), is_there in zip(some, found, strict=True):
                    # or another node of the cluster has the room, which moves with what waits
                    if is_there != 0 and (room, member) in self._left:
                        self.pending.setdefault(room, {})[member] = None
            turns.end_if_over()

    def _send_pending(self) -> None:
        for rooms in _batches(list(self.pending)):
            sent = {room: dict(list(self.pending[room].items())[:_BATCH]) for room in rooms}
            noted = {room: self._note_unconfirmed(room, sent[room]) for room in rooms}
            answers = self._run_all([self._command(room, sent[room].items()) for room in rooms])
            now = time.monotonic()
            with self._process.lock:
                for (room, changes), answer in zip(sent.items(), answers, strict=True):
                    if isinstance(answer, list) and room in self._rooms:  # these are not published
                        unchanged = {member.decode() for member in answer}
                        self._rooms[room].unconfirmed -= {
                            each for each in noted[room] if each[1] in unchanged
                        }
                    waiting = self.pending.get(room)
                    if waiting is None or (isinstance(answer, Exception) and is_redirect(answer)):
                        continue
                    for member, value in changes.items():
                        if waiting.get(member, "") == value:
                            del waiting[member]
                            if value is None:
                                self._left.setdefault((room, member), now)
                    if not waiting:
                        del self.pending[room]
                for each in list(self._left)[:-_LEFT]:
                    del self._left[each]
            turns.end_if_over()
        if self.pending:
            self._wake()

    def _note_unconfirmed(self, name: str, changes: dict[str, str | None]) -> set[tuple[str, str]]:
        """Returns those that were not noted before."""
        room = self._rooms.get(name)
        if room is None:
            return set()
        made = {(LEAVE if value is None else JOIN, member) for member, value in changes.items()}
        noted = made - room.unconfirmed
        room.unconfirmed |= made
        return noted

    def _command(self, room: str, changes: Any, kind: str = LEAVE) -> tuple[Any, ...]:
        """``changes``: pairs of a member and its value, None if it left. ``kind``: LEAVE or _REAP,
        for members that left; with _REAP, their origin is in place of None."""
        process = self._process
        keys = process.keys
        values: list[Any] = [keys.publish, keys.channel(room), self._key_age]
        values.append(keys.script_alive_prefix)
        for member, value in changes:
            origin, _, info = (value or "").partition(" ")
            is_join = bool(info)
            what = [JOIN if is_join else LEAVE, member, origin or process.origin]
            text = json.dumps([*what, json.loads(info) if is_join else {}])
            values += [JOIN if is_join else kind, member, value or "", text]
        return ("EVAL", _CHANGE, 1, keys.members(room), *values)

    def _run_all(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        def run(client: redis.Redis) -> Any:
            pipeline: Any = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)

        found: list[Any] = self._process.commands.run(run, urgent=True) if commands else []
        link = self._process.link
        for each in found:
            if isinstance(each, Exception) and "WRONGTYPE" not in str(each):
                if link is None or not link.redirect(each):
                    raise each
        return found

    def _renew(self) -> None:
        for some in _batches(list(self._rooms)):
            keys = self._process.keys
            self._run_all([("EXPIRE", keys.members(room), self._key_age) for room in some])
            age = self._process.options.expiry
            self._run_all([("EVAL", _RENEW, 1, keys.log(room), age) for room in some])

    # -- dead processes

    def _dead_of(self, origins: set[str]) -> set[str]:
        dead = set()
        if self._process.link is not None:
            return self._process.link.dead(origins)
        for some in _batches(list(origins)):
            keys = [self._process.keys.alive(origin) for origin in some]
            found = self._run_all([("EXISTS", key) for key in keys])
            dead |= {origin for origin, lives in zip(some, found, strict=True) if not lives}
        return dead

    def _revive(self, dead: set[str]) -> None:
        """Reports members of processes that were dead when a room was opened, and live again."""
        for name, room in list(self._rooms.items()):
            for member, other in list(room.others.items()):
                if not other.is_alive and other.origin not in dead:
                    self._add(name, room, member, other._replace(is_alive=True))

    def _reap(self, dead: set[str]) -> None:
        if not dead:
            return
        commands = []
        for name, room in list(self._rooms.items()):
            gone = [
                (member, other.origin)
                for member, other in room.others.items()
                if other.origin in dead
            ]
            if gone:
                commands.append(self._command(name, gone, _REAP))
        self._run_all(commands)

    # -- in a cluster: a room that another node has now

    def release(self, room: str) -> MovedLeases:
        self.stale.discard(room)
        for each in [each for each in self._left if each[0] == room]:
            del self._left[each]
            self.pending.setdefault(room, {}).setdefault(each[1], None)
        return MovedLeases(self._rooms.pop(room, None), self.pending.pop(room, None))

    def adopt(self, name: str, moved: MovedLeases) -> None:
        """Takes the state over; the members are read again."""
        room, pending = moved
        if room is not None:
            room.published.clear()
            self._rooms[name] = room
            self.stale.add(name)
        if pending is not None:
            self.pending[name] = {**pending, **self.pending.get(name, {})}
        self._wake()

    # -- changes by other processes

    def take(self, name: str, data: bytes) -> None:
        """Takes changes that were published. Does not block."""
        published = _parse_published(name, data)
        room = self._rooms.get(name)
        if published is None or room is None:
            return
        for kind, member, origin, _ in published.changes:
            if origin == self._process.origin:
                room.unconfirmed.discard((kind, member))
        if name in self.stale:
            room.published.append(published)
        elif not self._apply(name, room, published):
            room.published.append(published)
            self.stale.add(name)
            self._wake()

    def _apply(self, name: str, room: _Room, published: _Published) -> bool:
        """Applies published changes; False if earlier ones were missed."""
        if published.last <= int(room.version or "0"):
            return True
        if not published.follows(room.version):
            return False
        room.version = str(published.last)
        for kind, member, origin, info in published.changes:
            if origin == self._process.origin:
                if kind == LEAVE and member in room.mine:  # another process took us for dead
                    self._change(name, member, room.mine[member])
            elif kind == LEAVE:
                self._remove(name, room, member)
            else:
                self._add(name, room, member, Other(origin, info, True))
        return True

    def _add(self, name: str, room: _Room, member: str, other: Other) -> None:
        known = room.others.get(member)
        room.others[member] = other
        if other.is_alive and (known is None or not known.is_alive):
            self._process.report_presence(name, JOIN, member, other.info)

    def _remove(self, name: str, room: _Room, member: str) -> None:
        known = room.others.pop(member, None)
        if known is not None and known.is_alive:
            self._process.report_presence(name, LEAVE, member, known.info)

    def _refresh(self, name: str) -> None:
        """Reads the members, and corrects what differs: others here, our own in Redis."""
        room = self._rooms.get(name)
        if room is None:
            self.stale.discard(name)
            return
        room.published.clear()  # changes from now on may be newer than the members that are read
        snapshot = self.snapshot(name, urgent=True)
        with self._process.lock:
            if self._rooms.get(name) is not room:  # it was closed, and perhaps opened again
                return
            version = snapshot.version
            for each in room.published:  # changes that arrived during the read
                if each.follows(version):
                    version = str(each.last)
                    self._fold(snapshot, each)
            newest = max([room.newest, *(each.last for each in room.published)])
            room.newest = 0
            if int(version or "0") < newest:  # a change since then was missed
                self._wake()
                return
            is_loss = int(version or "0") < int(room.version or "0")
            room.version = version
            room.published.clear()
            room.unconfirmed.clear()
            self.stale.discard(name)
            self._correct(name, room, snapshot, is_loss)

    def _fold(self, snapshot: Snapshot, published: _Published) -> None:
        for kind, member, origin, info in published.changes:
            if origin == self._process.origin:
                if kind == LEAVE:
                    snapshot.mine.pop(member, None)
            elif kind == LEAVE:
                snapshot.others.pop(member, None)
            else:
                snapshot.others[member] = Other(origin, info, True)

    def _correct(self, name: str, room: _Room, snapshot: Snapshot, is_loss: bool) -> None:
        for member, value in room.mine.items():
            if snapshot.mine.get(member) != value:
                self._change(name, member, value)
        for member in snapshot.mine:
            if member not in room.mine:
                self._change(name, member, None)
        for member, other in snapshot.others.items():
            known = room.others.get(member)
            if known is None or other.is_alive:
                self._add(name, room, member, other)
        for member in [each for each in room.others if each not in snapshot.others]:
            if is_loss:  # Redis lost members: their processes will assert them again
                room.version = "0"  # the next beat looks again
            else:
                self._remove(name, room, member)


def _parse_published(room: str, data: bytes) -> _Published | None:
    try:
        head, _, text = data.partition(b"\n")
        _, first, last, is_new = head.split(b" ")
        changes = []
        for kind, member, origin, info in json.loads(text):
            if not (isinstance(member, str) and isinstance(origin, str) and isinstance(info, dict)):
                raise ValueError("no member")
            if kind not in (JOIN, LEAVE):
                raise ValueError("no change")
            changes.append((kind, member, origin, info))
        return _Published(int(first), int(last), is_new == b"1", changes)
    except (ValueError, TypeError, RecursionError) as error:
        _logger.warning("ignoring malformed Pub/Sub message for room %r: %r", room, error)
        return None


def _batches(all_: list[_Any]) -> Iterator[list[_Any]]:
    for first in range(0, len(all_), _BATCH):
        yield all_[first : first + _BATCH]
