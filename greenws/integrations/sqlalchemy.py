"""SQLAlchemy 2: sessions that wait for a message give their database connection back.

After ``release(db.session)``, called once, this happens before each wait in which nothing can be
lost. Listeners of SQLAlchemy's events see every statement. If a transaction ran only plain SELECTs,
nothing must be flushed and no result is being read, the transaction is rolled back, which returns
its connection to the pool. In all other cases the connection is kept, with a warning.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any

import sqlalchemy
from greenlet import getcurrent
from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

try:
    from sqlalchemy.engine import Connection, CursorResult, Engine
    from sqlalchemy.orm.session import SessionTransaction, SessionTransactionOrigin
except ImportError as error:
    raise ImportError(
        f"greenws.integrations.sqlalchemy needs SQLAlchemy 2, and {sqlalchemy.__version__} is "
        "installed: pip install -U 'sqlalchemy>=2', or give connections back by greenws.before_wait"
    ) from error

from ..databases import is_plain_select, warn_kept
from ..waiting import before_wait

__all__ = ["release"]

# Statements that neither change data nor have an effect after the rollback.
_HARMLESS = re.compile(r"(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) \w+|BEGIN( DEFERRED)?")

# On PostgreSQL, a transaction has an id from its first write on, even one by a function, a trigger
# or the driver. An unusual isolation level was probably chosen for its snapshot.
_POSTGRESQL = (
    "SELECT {}() IS NULL, current_setting('transaction_isolation') IN ('read committed', "
    "'read uncommitted')"
)

# A listener for one of these takes part in transactions, and may not expect our rollback.
_TRANSACTION_EVENTS = (
    "after_begin",
    "after_rollback",
    "after_soft_rollback",
    "after_transaction_create",
    "after_transaction_end",
)


class _Work:
    """The work of one transaction on a connection."""

    def __init__(self, changes: int) -> None:
        self.changes = changes  # rows that the connection had changed before, in SQLite
        self.doubt = ""  # the first statement that may leave something to lose
        self.greenlet: weakref.ref[Any] | None = None  # that ran the last statement
        # For each statement whose result may be alive: its context, which the result keeps alive,
        # and the attributes of the result, which cannot be referenced weakly itself.
        self.results: list[tuple[weakref.ref[Any], dict[str, Any]]] = []

    def forget_ended(self) -> None:
        """Drops results that have been read to their end, or freed."""
        self.results = [
            (context, attributes)
            for context, attributes in self.results
            if context() is not None and not attributes.get("_soft_closed")
        ]


_work: weakref.WeakKeyDictionary[Connection, _Work] = weakref.WeakKeyDictionary()
"""The work of the latest transaction of each connection."""
_connections: weakref.WeakKeyDictionary[SessionTransaction, list[Connection]] = (
    weakref.WeakKeyDictionary()
)
_begun: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Session]] = weakref.WeakKeyDictionary()
"""By greenlet: the sessions that have begun a transaction in it."""


def _on_begin(connection: Connection) -> None:
    _work[connection] = _Work(_count_changes(connection))


def _on_statement(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: Any,
    executemany: bool,
) -> None:
    work = _work.get(connection)
    if work is None:
        return
    work.greenlet = weakref.ref(getcurrent())
    work.forget_ended()
    if context is not None:
        work.results.append((weakref.ref(context), {}))
    if not work.doubt and not (is_plain_select(statement) or _HARMLESS.fullmatch(statement)):
        work.doubt = statement


def _on_result(
    connection: Connection, clause: Any, multiparams: Any, params: Any, options: Any, result: Any
) -> None:
    work = _work.get(connection)
    if work is None or not isinstance(result, CursorResult):  # the value of a default
        return
    work.forget_ended()
    work.results = [(ref, attrs) for ref, attrs in work.results if ref() is not result.context]
    work.results.append((weakref.ref(result.context), vars(result)))


def _on_session_begin(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    while transaction.parent is not None:
        transaction = transaction.parent
    _connections.setdefault(transaction, []).append(connection)
    _begun.setdefault(getcurrent(), weakref.WeakSet()).add(session)


_LISTENERS = (
    (Engine, "begin", _on_begin),
    (Engine, "before_cursor_execute", _on_statement),
    (Engine, "after_execute", _on_result),
    (Session, "after_begin", _on_session_begin),
)
for _target, _name, _listener in _LISTENERS:
    event.listen(_target, _name, _listener)

_hooks: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()


def release(session: Any) -> Callable[[], None]:
    """Makes greenlets that wait for a message give the connections of ``session`` back to their
    pool, if nothing can be lost by that. Call it once, where the program starts::

        release(db.session)  # Flask-SQLAlchemy

    ``session`` is a ``scoped_session`` (its current session, if there is one), a ``sessionmaker``
    (all of its sessions that the greenlet has used), a ``Session`` or a subclass of it. Outside an
    application context nothing happens. Returns the function that it registers with
    :func:`greenws.before_wait`.

    The transaction is rolled back: objects stay attached, and are reloaded at their next use. The
    connection is kept, with a warning once for each line of code, if the transaction ran anything
    but plain SELECTs (FOR UPDATE, a writing CTE, or a function that is not known to only compute,
    is not plain); if objects are new, dirty or deleted; if a result has not been read to its end;
    if the transaction was begun explicitly, is nested, or has an unusual isolation level; if the
    session belongs to an external transaction, is used by another greenlet, or has listeners for
    its transactions. On PostgreSQL the server is also asked whether it wrote anything, and with
    SQLite the driver; with other databases, writes that bypass SQLAlchemy are not noticed.

    Raises:
        TypeError: ``session`` is none of these.
    """
    if isinstance(session, scoped_session):
        is_meant = _is_current_of(session)
    elif isinstance(session, sessionmaker):
        is_meant = _is_instance_of(session.class_)
    elif isinstance(session, type) and issubclass(session, Session):
        is_meant = _is_instance_of(session)
    elif isinstance(session, Session):
        is_meant = _is_same_as(session)
    else:
        raise TypeError(
            "release() takes a scoped_session, such as db.session of Flask-SQLAlchemy, a "
            f"sessionmaker or a Session, not {session!r}"
        )
    hook = _hooks.get(session)
    if hook is None:

        def hook() -> None:
            for begun in list(_begun.get(getcurrent(), ())):
                if begun.in_transaction() and is_meant(begun):
                    _release(begun)

        _hooks[session] = before_wait(hook)
    return hook


def _is_current_of(scoped: scoped_session[Any]) -> Callable[[Session], bool]:
    registry = scoped.registry  # not the key of _hooks

    def is_meant(session: Session) -> bool:
        try:
            return registry.has() and registry() is session
        except RuntimeError:  # Flask's, outside an application context
            return False

    return is_meant


def _is_instance_of(cls: type[Session]) -> Callable[[Session], bool]:
    reference = weakref.ref(cls)

    def is_meant(session: Session) -> bool:
        cls = reference()
        return cls is not None and isinstance(session, cls)

    return is_meant


def _is_same_as(wanted: Session) -> Callable[[Session], bool]:
    reference = weakref.ref(wanted)
    return lambda session: session is reference()


def _release(session: Session) -> None:
    """Rolls back, unless something might be lost."""
    transaction = session.get_transaction()
    connections = [] if transaction is None else _connections.get(transaction, [])
    if transaction is None or not connections or not session.is_active:
        return  # it has no connection, or waits for a rollback after an error
    reason = _doubt_of_session(session, transaction)
    for connection in connections:
        reason = reason or _doubt_of_connection(connection)
    for connection in connections:  # last, since only these ask the server
        reason = reason or _doubt_of_server(session, connection)
    if reason:
        warn_kept(reason)
    else:
        session.rollback()


def _doubt_of_session(session: Session, transaction: SessionTransaction) -> str:
    """Why the session may lose something by a rollback; empty if it cannot."""
    if transaction.nested or session.in_nested_transaction():
        return "a savepoint is open"
    if transaction.origin is not SessionTransactionOrigin.AUTOBEGIN:
        return "the transaction was begun explicitly"
    if session.twophase:
        return "the session commits in two phases"
    for name, objects in (
        ("new", session.new),
        ("dirty", session.dirty),
        ("deleted", session.deleted),
    ):
        if objects:
            return f"the session has {name} objects ({type(next(iter(objects))).__name__})"
    binds = [session.bind, *vars(session).get("_Session__binds", {}).values()]
    if any(isinstance(bind, Connection) for bind in binds):
        return "the session works in a transaction that is not its own"
    for name in _TRANSACTION_EVENTS:
        if set(getattr(session.dispatch, name)) - {_on_session_begin}:
            return f"the session has a listener for {name}"
    return ""


def _doubt_of_connection(connection: Connection) -> str:
    """The same for the work on a connection."""
    if connection.closed or connection.invalidated:
        return "its connection was closed"
    work = _work.get(connection)
    if work is None:
        return "its transaction was not watched from the beginning"
    if work.doubt:
        return f"its transaction ran {_shorten(work.doubt)!r}, which is not a plain SELECT"
    if work.greenlet is not None and work.greenlet() is not getcurrent():
        return "another greenlet works with the same session"
    work.forget_ended()
    if work.results:
        return "a result was not read to its end"
    if connection.in_nested_transaction():
        return "a savepoint is open"
    chosen = getattr(connection.dialect, "_on_connect_isolation_level", None)  # of create_engine()
    level = str(connection.get_execution_options().get("isolation_level", chosen or ""))
    if level.upper().replace("_", " ") in ("REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT"):
        return f"its isolation level is {level}"
    if _count_changes(connection) != work.changes:
        return "its transaction wrote something"
    return ""


def _count_changes(connection: Connection) -> int:
    """The rows that a connection of SQLite has changed; 0 for other databases."""
    if connection.dialect.name != "sqlite":
        return 0
    return int(getattr(connection.connection.dbapi_connection, "total_changes", 0))


def _doubt_of_server(session: Session, connection: Connection) -> str:
    """The same, from a question to PostgreSQL."""
    dialect = connection.dialect
    if dialect.name != "postgresql":
        return ""
    version = dialect.server_version_info or (0,)
    name = "pg_current_xact_id_if_assigned" if version >= (13,) else "txid_current_if_assigned"
    driver: Any = connection.connection.dbapi_connection
    try:
        cursor = driver.cursor()
        try:
            cursor.execute(_POSTGRESQL.format(name))
            has_not_written, is_usual = cursor.fetchone()
        finally:
            cursor.close()
    except Exception as error:
        return f"its state is unknown ({type(error).__name__})"
    except BaseException:  # for example, killed in the middle of an answer
        session.invalidate()
        raise
    if not has_not_written:
        return "its transaction wrote something"
    return "" if is_usual else "its isolation level is not READ COMMITTED"


def _shorten(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
