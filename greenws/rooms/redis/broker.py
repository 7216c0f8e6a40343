"""``RedisBroker``: rooms over one Redis, over several, over a master with sentinels, or over a
cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..broker import Broker, Listener, Message, Replay
from . import url as urls
from .cluster import Cluster
from .node import Node
from .options import Options
from .sockets import check_sockets
from .spread import Spread, addresses_of

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["RedisBroker"]

_logger = logging.getLogger("greenws.brokers.redis")


class RedisBroker(Broker):
    """Carries rooms between processes and machines, through Redis (6.2 or later) or Valkey.

    ``url``: any URL of redis-py; ``redis+sentinel://[user:password@]host:port[,host:port...]/
    MASTER[/DB]`` for a master that sentinels watch (their own password is the option
    ``sentinel_password``); ``redis+cluster://[user:password@]host:port[,host:port...]``, with some
    of the nodes, for a cluster of Redis 7 or Valkey; ``rediss`` instead of ``redis`` for TLS. Or a
    list of such URLs: each room is in one of them, chosen by its name. If the list changes, some
    rooms move, and their history stays behind.

    A room's log keeps ``history`` messages or a few more, but no more than ``history_bytes`` in the
    memory of Redis, and none for much longer than ``max_age`` seconds; a log that is idle for that
    long expires. A process that falls further behind loses messages, and its members are sent the
    gap. ``max_pending``, ``max_pending_bytes``: how much is kept while Redis is out of reach.
    ``timeout``: seconds after which a Redis that does not answer counts as out of reach, and for
    which a member that comes back waits for it. ``presence_timeout``: seconds after which the
    members of a process that died are removed.

    It connects at first use, and waits for a Redis that is not there yet. If that is a node of a
    cluster, and the URL does not begin with ``redis+cluster://``, each later call raises a
    ValueError, and the error is logged.

    Redis must keep its data when it restarts (``appendonly yes``), and must not evict logs
    (``noeviction``); otherwise messages that a process has not read yet are lost, and its members
    are sent the gap. When a master is lost, messages that it acknowledged but had not replicated
    are lost, without a gap for members that had not received any of them. All names of keys and
    channels begin with ``prefix``, for an ACL.

    Raises:
        RuntimeError: when a room is used: redis-py would block the hub. Until then it is a warning.
        TypeError, ValueError: ``url`` is not one of these, or the value of an option is not
            allowed.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        prefix: str = "greenws:",
        history: int = 10_000,
        history_bytes: int = 64 * 2**20,
        max_age: float = 3600.0,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 * 2**20,
        timeout: float = 5.0,
        presence_timeout: float = 15.0,
    ) -> None:
        self.tail_length, self.tail_age = history, max_age

        def make(text: str, address: urls.Address) -> Node | Cluster:
            options = Options(
                text,
                prefix,
                history,
                history_bytes,
                max_age,
                max_pending,
                max_pending_bytes,
                timeout,
                presence_timeout,
            )
            if address.kind == urls.CLUSTER:
                return Cluster(options, address)
            if len(addresses) > 1:
                options = replace(options, name=f"Redis at {address.name}")
            return Node(options)

        addresses = addresses_of(url)
        self.urls = [text for text, _ in addresses]
        """The URLs that it was given."""
        # Only a warning: programs that are not servers (manage.py, Celery) make rooms on import.
        self._is_checked = False
        try:
            self._check()
        except RuntimeError as error:
            _logger.warning("%s", error)
        self.parts = [make(*each) for each in addresses]
        self._spread = Spread([address for _, address in addresses])

    def _check(self) -> None:
        """
        Raises:
            RuntimeError: redis-py would block the hub.
        """
        for each in self.urls:
            check_sockets(each)
        self._is_checked = True

    def _part(self, room: str) -> Node | Cluster:
        if not self._is_checked:
            self._check()
        return self.parts[self._spread.index(room)]

    # -- the listener

    def attach(self, listener: Listener) -> None:
        super().attach(listener)
        for each in self.parts:
            each.attach(listener)

    def detach(self) -> None:
        super().detach()
        for each in self.parts:
            each.detach()

    # -- rooms

    def open(self, room: str) -> None:
        self._part(room).open(room)

    def close(self, room: str) -> bool:
        return self._part(room).close(room)

    def position(self, room: str) -> str:
        return self._part(room).position(room)

    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        self._part(room).publish(room, data, exclude)

    def receipt(self, room: str) -> Callable[[], bool]:
        return self._part(room).receipt(room)

    def resume(self, room: str, since: str) -> Replay:
        return self._part(room).resume(room, since)

    def newest(self, room: str, count: int) -> list[Message]:
        return self._part(room).newest(room, count)

    # -- presence and reach

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        self._part(room).join(room, member, info)

    def leave(self, room: str, member: str) -> None:
        self._part(room).leave(room, member)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        return self._part(room).others(room)

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        return self._part(room).members(room)

    def end_of(self, room: str) -> str:
        return self._part(room).end_of(room)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        self._part(room).disconnect(room, code, reason, member)

    # -- the end

    def flush(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        done = True
        for each in self.parts:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = each.flush(left) and done
        return done

    def stop(self) -> None:
        for each in self.parts:
            each.stop()
