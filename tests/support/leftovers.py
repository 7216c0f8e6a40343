"""What a test may leave behind, or have printed: greenlets, sockets, errors."""

from __future__ import annotations

import io
import logging
import os
import weakref

import gevent

_started: weakref.WeakSet[gevent.Greenlet] = weakref.WeakSet()
gevent.Greenlet.add_spawn_callback(_started.add)


def live_greenlets() -> list[gevent.Greenlet]:
    """Those that were started since this module was imported, and live."""
    return [greenlet for greenlet in list(_started) if not greenlet.dead]


def open_sockets() -> dict[str, str]:
    """The descriptors of this process that are sockets, each with the number of its socket."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the descriptor of listdir itself
            continue
    return {number: target for number, target in found.items() if target.startswith("socket:")}


class ErrorLog(logging.Handler):
    """Errors that greenws logged. A test that expects some takes them off with ``take()``."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def take(self) -> list[logging.LogRecord]:
        records, self.records = self.records, []
        return records


class HubErrors(io.StringIO):
    """What a hub printed: tracebacks of greenlets. ``take()`` as in :class:`ErrorLog`."""

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def drop_errors() -> None:
    """Takes the errors of a test that is run again."""
    for handler in logging.getLogger("greenws").handlers:
        if isinstance(handler, ErrorLog):
            handler.take()
    stream = gevent.get_hub().exception_stream
    if isinstance(stream, HubErrors):
        stream.take()
