"""Many sessions that have said one thing and wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .wire import TEXT, Peer, frame


@contextlib.contextmanager
def idle_sessions(
    address: Any, path: str, count: int, message: bytes, answer: bytes, **headers: str
) -> Iterator[list[Peer]]:
    """``count`` open sessions, each of which has got ``answer`` to ``message``."""
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer.open(address, path, frame(TEXT, message), **headers))
            for _ in range(count)
        ]
        for peer in peers:
            assert peer.read_frame() == (True, TEXT, answer)
        yield peers
