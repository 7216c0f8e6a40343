"""Sessions give their database connections back before they wait.

Outside of ``atomic()`` Django commits each statement, so closing a connection loses no data. But it
loses the state of the connection: ``SET``, a temporary table, an advisory lock, a cursor that is
being read. So every statement is watched, and a connection that has run an unusual one is kept,
with a warning.
"""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ...databases import leaves_nothing, warn_kept

__all__ = ["release", "watch"]

# Statements that Django sends around transactions, and those of SQLite that only read.
_TRANSACTION = re.compile(
    r"(RELEASE |ROLLBACK TO )?SAVEPOINT \S+|BEGIN( [A-Z]+)?"
    r"|PRAGMA (foreign_keys|((foreign_key_(check|list)|(table|index)_x?info|index_list)\([^()]*\)))"
    r"|PRAGMA foreign_key_check"
)
# From disable_constraint_checking() and its opposite. Django's new connections have ON.
_FOREIGN_KEYS = re.compile(r"PRAGMA foreign_keys = (?:ON|(OFF))")

_connect: Any = inspect.unwrap(BaseDatabaseWrapper.connect)


class _Statements:
    """The statements of a connection since it was made."""

    def __init__(self) -> None:
        self.doubt = ""  # the first statement that may have left something
        self.unchecked = ""  # the statement that switched foreign key checks off
        self.cursors: list[weakref.ref[Any]] = []

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        parameters: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        """Django's ``execute_wrapper``."""
        self.forget_closed()
        self.cursors.append(weakref.ref(context["cursor"]))
        if isinstance(sql, str) and (switch := _FOREIGN_KEYS.fullmatch(sql)):
            self.unchecked = sql if switch[1] else ""
        elif not self.doubt and not _is_ordinary(sql) and not _is_connecting():
            self.doubt = str(sql)
        return execute(sql, parameters, many, context)

    def forget_closed(self) -> None:
        self.cursors = [
            reference
            for reference in self.cursors
            if (cursor := reference()) is not None and not _is_closed(cursor)
        ]


def _is_closed(cursor: Any) -> bool:
    closed = getattr(cursor, "closed", None)
    if closed is None:  # the drivers of MySQL take the connection away instead
        return getattr(cursor, "connection", cursor) is None
    return bool(closed)


_work: weakref.WeakKeyDictionary[BaseDatabaseWrapper, _Statements] = weakref.WeakKeyDictionary()


def _is_ordinary(sql: Any) -> bool:
    return isinstance(sql, str) and (leaves_nothing(sql) or _TRANSACTION.fullmatch(sql) is not None)


def _is_connecting() -> bool:
    """Whether a connection is being made: receivers of ``connection_created`` will repeat their
    settings on the next one."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _connect.__code__:
            return True
        frame = frame.f_back
    return False


def _on_created(connection: BaseDatabaseWrapper, **_: Any) -> None:
    work = _work.get(connection)
    if work in connection.execute_wrappers:
        connection.execute_wrappers.remove(work)
    work = _work[connection] = _Statements()
    # First, because execute_wrapper() removes the last one when its block ends.
    connection.execute_wrappers.insert(0, work)


def watch() -> None:
    """Watches all connections that are made from now on."""
    connection_created.connect(_on_created, dispatch_uid="greenws")


def release() -> None:
    """Closes the connections of this greenlet, or gives them back to their pool, if nothing can be
    lost by that."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.allow_thread_sharing:
            continue
        if _is_test(connection):
            continue
        reason = _doubt_of(connection)
        if reason:
            warn_kept(f"{connection.alias!r}: {reason}")
        else:
            connection.close()


def _is_test(connection: Any) -> bool:
    """Whether a ``TestCase`` has begun a transaction, to undo what a test does; or the database is
    in memory, where Django closes nothing."""
    if getattr(connection, "is_in_memory_db", bool)():
        return True
    return connection.in_atomic_block and any(
        getattr(block, "_from_testcase", False) for block in connection.atomic_blocks
    )


def _doubt_of(connection: Any) -> str:
    """Why closing ``connection`` may lose something; empty if it cannot."""
    if connection.in_atomic_block:
        return "it is inside atomic(), or ATOMIC_REQUESTS is on"
    if not connection.autocommit:
        return "autocommit is off"
    work = _work.get(connection)
    if work is None or work not in connection.execute_wrappers:
        return "its statements were not watched from the beginning"
    if work.doubt or work.unchecked:
        statement = " ".join((work.doubt or work.unchecked).split())
        return f"it ran {statement[:60]!r}, which may have changed the state of the connection"
    work.forget_closed()
    if work.cursors:
        return "a cursor is open"
    return ""
