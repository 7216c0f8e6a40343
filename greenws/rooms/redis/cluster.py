"""``Cluster``: rooms over a Redis Cluster. There is a ``Node`` for each master, and each room is in
the one that has its slot.

State is kept for each node, so an outage of one concerns only its rooms. A slot moves to another
node when the cluster is resharded or a replica takes over; then the state of its rooms moves to
that ``Node`` in one step. The numbers by which repeated entries are recognised are in the slot of
the log, so nothing is lost or repeated by that. A node answers MOVED for a slot that it no longer
has, and ends subscriptions to it; CLUSTER SLOTS gives the map.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
import redis
import redis.exceptions
from gevent.event import Event

from ...hub.switching import thread_id
from ..broker import Broker, BrokerUnavailable, Listener, Message, Replay
from . import url
from .errors import ERRORS, is_redirect
from .keys import Keys, slot_of
from .leases import BEAT, renew_alive_key
from .node import Node
from .options import Options
from .process import Identity, Process
from .sockets import own_socket
from .url import Address, Host

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["Cluster"]

_SLOTS = 16384
_INTERVAL = 10.0  # seconds between two reads of the map of the cluster
_TROUBLED_INTERVAL = 0.25  # the same, while a node is lost, or a slot moves
_MAP_TIMEOUT = 1.0  # seconds that a node may take to answer with the map

_logger = logging.getLogger("greenws.brokers.redis")


class Cluster(Broker):
    """``options``: those of each node, except its URL."""

    def __init__(self, options: Options, address: Address) -> None:
        self.tail_length, self.tail_age = options.history, options.max_age
        self.nodes: dict[Host, Node] = {}
        self._options = options
        self._address = address
        self._keys = Keys(options.prefix, 0, is_cluster=True)
        self._owners: dict[int, Host] = {}  # of slots
        self._is_stopped = False
        self._refused: url.WrongScheme | None = None
        self._reset()

    def _reset(self) -> None:
        """Called in each process, after a fork too."""
        self._process_id = os.getpid()
        self._identity = Identity()
        self._is_started = False
        self._hub = gevent.get_hub()
        self._thread = thread_id()
        self._wake = Event()
        self._has_looked = Event()
        self._watcher: gevent.Greenlet[[], None] | None = None
        self._moves_until = 0.0  # until then, a slot probably moves
        # By room: the node that opens it, and for how many calls. All use the same node.
        self._opening: dict[str, tuple[Node, int]] = {}
        # whether processes live
        self._next_proof = 0.0
        self._has_proved = False
        self._forgotten = 0
        self._seen: dict[str, float] = {}  # when a process was seen to live
        self._grace_until = 0.0

    @property
    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._listener is None else self._listener.lock

    # -- beginning and end

    def attach(self, listener: Listener) -> None:
        super().attach(listener)
        for each in self.nodes.values():
            each.attach(listener)

    def detach(self) -> None:
        super().detach()
        for each in self.nodes.values():
            each.detach()

    def _start(self) -> None:
        if self._is_stopped:
            raise BrokerUnavailable("these rooms were closed")
        if self._refused is not None:
            raise self._refused
        if self._process_id != os.getpid():  # the nodes reset themselves
            self._reset()
        if self._is_started:
            return
        with self._lock:
            if not self._is_started:
                self._is_started = True
                self._hub = gevent.get_hub()
                self._thread = thread_id()
                self._watcher = gevent.spawn(self._watch)
                for each in list(self.nodes.values()):
                    each.start()

    def stop(self) -> None:
        self._is_stopped = True
        if self._watcher is not None and self._process_id == os.getpid():
            self._watcher.kill()
        for each in list(self.nodes.values()):
            each.end_greenlets()
        # Not before: one that waits for another node would take its end for a lost connection.
        for each in list(self.nodes.values()):
            each.stop()
        self._identity.wake_senders()

    def flush(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            nodes = list(self.nodes.values())
            for each in nodes:
                each.flush(None if deadline is None else max(0.0, deadline - time.monotonic()))
            # Messages may have moved to another node during the loop.
            if all(each.flush(0) for each in list(self.nodes.values())):
                return True
            if self._is_stopped or (deadline is not None and time.monotonic() >= deadline):
                return False

    # -- nodes

    def _node_at(self, host: Host) -> Node:
        node = self.nodes.get(host)
        if node is None:
            options = replace(
                self._options,
                url=self._address.url(host),
                is_cluster=True,
                name=f"Redis at {host[0]}:{host[1]}",
            )
            node = self.nodes[host] = Node(options, self)
            if self._listener is not None:
                node.attach(self._listener)
            if self._is_started and not self._is_stopped:
                node.start()
        return node

    def _node(self, room: str) -> Node:
        """The node with all state of a room. It may not be the one that has its slot yet."""
        opening = self._opening.get(room)
        return self._owner(room) if opening is None else opening[0]

    def _owner(self, room: str) -> Node:
        return self._node_of_slot(self._keys.slot(room))

    def _node_of_slot(self, slot: int) -> Node:
        """The node of a slot; the first of the URL until the cluster was reached."""
        return self._node_at(self._owners.get(slot, self._address.hosts[0]))

    def process_of(self, room: str) -> Process:
        return self._owner(room).process

    # -- the map

    def redirect(self, error: BaseException) -> bool:
        if not is_redirect(error):
            return False
        self._moves_until = time.monotonic() + 1.0
        if isinstance(error, redis.exceptions.MovedError):
            slot, host = int(error.slot_id), (str(error.host), int(error.port))
            if host[0] and self._owners.get(slot) != host and not self._is_stopped:
                with self._lock:
                    self._owners[slot] = host
                    self._move_rooms()
        self.read_map_soon()
        return True

    def read_map_soon(self) -> None:
        if thread_id() == self._thread:
            self._wake.set()
        else:
            self._hub.loop.run_callback_threadsafe(self._wake.set)

    def _watch(self) -> None:
        with suppress(gevent.GreenletExit):
            while self._refused is None:
                self._wake.clear()
                try:
                    if self._read_map():
                        self._retire()
                except Exception:
                    _logger.exception("looking at the map of the cluster failed")
                self._has_looked.set()
                gevent.sleep(_TROUBLED_INTERVAL / 5)
                is_troubled = len(self._owners) < _SLOTS or time.monotonic() < self._moves_until
                is_troubled |= any(each.process.outage.is_lost for each in self.nodes.values())
                self._wake.wait(_TROUBLED_INTERVAL if is_troubled else _INTERVAL)

    def _read_map(self) -> bool:
        """Reads the map of the cluster; returns whether a node answered."""
        nodes = list(self.nodes.items())
        random.shuffle(nodes)
        nodes.sort(key=lambda each: each[1].process.outage.is_lost)
        for host in dict.fromkeys([*(host for host, _ in nodes), *self._address.hosts]):
            try:
                slots, is_sure = self._ask(host)
            except redis.ResponseError as error:
                if "cluster support disabled" in str(error):
                    self._refuse(host)
                    return False
                continue
            except ERRORS:
                continue
            if is_sure and slots and not self._is_stopped:
                with self._lock:
                    self._owners = slots
                    self._move_rooms()
                return True
        return False

    def _ask(self, host: Host) -> tuple[dict[int, Host], bool]:
        """The map of the cluster as one node knows it, and whether that node is part of it."""
        timeout = min(_MAP_TIMEOUT, self._options.timeout)
        client: Any = url.connect(self._address.url(host), timeout, timeout, own_socket)
        try:
            listed: Any = client.execute_command("CLUSTER SLOTS")
            info: Any = client.execute_command("CLUSTER INFO")
        finally:
            client.connection_pool.disconnect()
        slots: dict[int, Host] = {}
        for first, last, (name, port, *_), *_ in listed:
            owner = (name.decode() if name else host[0], int(port))
            slots.update(dict.fromkeys(range(first, last + 1), owner))
        text = info.decode() if isinstance(info, bytes) else str(info)
        return slots, "cluster_state:ok" in text or "'cluster_state': 'ok'" in text

    def _refuse(self, host: Host) -> None:
        reason = f"the Redis at {host[0]}:{host[1]} is not a node of a cluster: write redis://"
        _logger.error("%s", reason)
        self._refused = url.WrongScheme(reason)
        self._identity.wake_senders()

    def _move_rooms(self) -> None:
        """Moves rooms to the nodes of their slots. The lock is held; it does not block."""
        for node in list(self.nodes.values()):
            for room in node.rooms() - set(self._opening):
                target = self._owner(room)
                if target is not node:
                    if not self._is_stopped:
                        target.start()
                    target.adopt(room, node.release(room))

    def _retire(self) -> None:
        """Ends nodes that have no slots any more."""
        owners = set(self._owners.values())
        for host, node in list(self.nodes.items()):
            if host not in owners and not node.is_used and not self._opening:
                del self.nodes[host]
                node.stop()

    # -- whether processes live: keys that may be in any node

    @property
    def identity(self) -> Identity:
        if self._process_id != os.getpid():
            self._reset()
        return self._identity

    def probe(self, process: Process) -> int:
        for number in range(_SLOTS):
            if self._node_of_slot(slot_of(self._keys.probe(number))).process is process:
                return number
        raise redis.ConnectionError("this node of the cluster has no slots")

    def prove_alive(self) -> int:
        now = time.monotonic()
        if now < self._next_proof:
            return self._forgotten
        interval = self._options.presence_timeout * BEAT
        self._next_proof = now + interval * 0.9
        key = self._keys.alive(self._identity.origin)
        process = self._node_of_slot(slot_of(key)).process
        try:
            was_known = renew_alive_key(process, key)
        except ERRORS as error:
            process.fail(error, now)
            self._next_proof = now + min(1.0, interval)
        else:
            self._forgotten += self._has_proved and not was_known
            self._has_proved = True
        return self._forgotten

    def dead(self, origins: set[str]) -> set[str]:
        now = time.monotonic()
        interval = self._options.presence_timeout * BEAT
        self._seen = {origin: at for origin, at in self._seen.items() if now - at < interval / 2}
        unsure: dict[int, list[str]] = {}
        processes: dict[int, Process] = {}
        for origin in origins - set(self._seen):
            process = self._node_of_slot(slot_of(self._keys.alive(origin))).process
            processes[id(process)] = process
            unsure.setdefault(id(process), []).append(origin)
        dead: set[str] = set()
        for key, some in unsure.items():
            dead |= self._dead_of(processes[key], some)
        return dead if time.monotonic() >= self._grace_until else set()

    def _dead_of(self, process: Process, origins: list[str]) -> set[str]:
        """The dead ones of ``origins``, whose keys are all in one node."""

        def run(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)
            for origin in origins:
                pipeline.exists(self._keys.alive(origin))
            return pipeline.execute(raise_on_error=False)

        began = time.monotonic()
        found: list[Any]
        try:
            found = process.commands.run(run, urgent=True)
        except ERRORS as error:
            process.fail(error, began)
            found = [error] * len(origins)
        for origin, each in zip(origins, found, strict=True):
            if isinstance(each, Exception):
                # Unknown. When that node is back, all processes need a moment to renew their keys.
                self.redirect(each)
                self._grace_until = began + self._options.presence_timeout * 2 * BEAT
            elif each:
                self._seen[origin] = began
        return {origin for origin, each in zip(origins, found, strict=True) if each == 0}

    # -- rooms

    def _wait_for_map(self) -> None:
        """Waits for a cluster that is down when the program starts, once, for ``timeout``."""
        self._start()
        if not self._owners:
            self._has_looked.wait(self._options.timeout)
        if self._refused is not None:
            raise self._refused

    def open(self, room: str) -> None:
        self._wait_for_map()
        node, others = self._opening.get(room, (self._owner(room), 0))
        self._opening[room] = node, others + 1
        try:
            node.open(room)
        finally:
            node, others = self._opening.pop(room)
            if others > 1:
                self._opening[room] = node, others - 1
            elif self._owner(room) is not node:  # its slot moved while it was opened
                with self._lock:
                    self._move_rooms()

    def close(self, room: str) -> bool:
        return self._node(room).close(room)

    def position(self, room: str) -> str:
        return self._node(room).position(room)

    # -- messages

    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        self._start()
        with self._lock:
            self._node(room).publish(room, data, exclude)

    def receipt(self, room: str) -> Callable[[], bool]:
        # The node may be retired before another one has appended the message.
        hub = self._hub if thread_id() == self._thread else None
        return partial(self._identity.receipt(hub).wait, room, self._is_over)

    def _is_over(self) -> bool:
        """
        Raises:
            WrongScheme: this is no cluster.
        """
        if self._refused is not None:
            raise self._refused
        return self._is_stopped

    def resume(self, room: str, since: str) -> Replay:
        return self._node(room).resume(room, since)

    def newest(self, room: str, count: int) -> list[Message]:
        self._wait_for_map()
        return self._node(room).newest(room, count)

    # -- presence and reach

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        self._node(room).join(room, member, info)

    def leave(self, room: str, member: str) -> None:
        if not self._is_stopped:
            self._node(room).leave(room, member)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        return self._node(room).others(room)

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        self._wait_for_map()
        return self._node(room).members(room)

    def end_of(self, room: str) -> str:
        self._wait_for_map()
        return self._node(room).end_of(room)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        self._wait_for_map()
        self._node(room).disconnect(room, code, reason, member)
