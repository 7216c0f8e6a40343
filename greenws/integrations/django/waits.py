"""Before a session of Django waits, it saves ``request.session`` and frees its connections."""

from __future__ import annotations

from django.conf import settings

from ...waiting import before_wait
from . import connections, sessions

__all__ = ["install"]


def install() -> None:
    """Registers that for all sessions of the process."""
    connections.watch()
    before_wait(_prepare)


def _prepare() -> None:
    if not settings.configured:  # nothing has used Django yet
        return
    try:
        sessions.save()
    finally:
        connections.release()
