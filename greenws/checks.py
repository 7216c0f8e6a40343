"""Finds mistakes in calls of greenws where they are made, not when the first client connects.

Each function raises TypeError with what was given, and what to write instead.
"""

from __future__ import annotations

import difflib
import dis
import functools
import gc
import inspect
import linecache
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary, ref

from .opcodes import MAX_REASON, is_sendable

__all__ = [
    "REFUSE_EARLIER",
    "Registration",
    "check_application",
    "check_close",
    "check_function",
    "check_number",
    "check_options",
    "check_registrations",
    "check_sendable",
    "check_result",
    "describe",
    "explains",
    "fits",
    "not_a_handler",
    "Hint",
    "suggest",
    "unknown_option",
    "wrong_message",
]


F = TypeVar("F", bound=Callable[..., Any])

_logger = logging.getLogger("greenws.session")
_warned_results: WeakSet[Any] = WeakSet()  # the code of functions

REFUSE_EARLIER = (
    "refuse before the upgrade: in Flask's before_request, in the handler producer, or in the view "
    "that returns a WebSocketHandler"
)

_MAX_DECORATORS = 20

_REQUESTS = ("request", "req")
_SOCKETS = ("socket", "sock", "ws", "websocket")

# The names of options in other libraries, and ours.
_ELSEWHERE = {
    "compress": "deflate",
    "compression": "deflate",
    "cors_allowed_origins": "allowed_origins",
    "heartbeat": "ping_interval",
    "max_msg_size": "max_message_size",
    "max_payload": "max_message_size",
    "max_size": "max_message_size",
    "open_timeout": "handshake_timeout",
    "origins": "allowed_origins",
    "per_message_deflate": "deflate",
    "protocol": "protocols",
    "subprotocol": "protocols",
    "subprotocols": "protocols",
    "write_limit": "write_high_water",
}


def suggest(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that ``name`` probably means."""
    found = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return found[0] if found else None


def unknown_option(name: str, known: Iterable[str]) -> str:
    """The error text for an option that is not among the ``known`` ones."""
    known = sorted(known)
    if name in ("method", "methods"):
        return f"unknown option {name!r}: a handshake is always a GET, so leave it out"
    if name == "protocols" and not {"protocols", "subprotocols"}.intersection(known):
        return (
            "unknown option 'protocols': the producer gets the subprotocols that the client "
            "offers, and returns a handler whose socket_protocol is the one to speak"
        )
    meant = _ELSEWHERE.get(name)
    if meant not in known:
        meant = suggest(name, known)
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    return f"unknown option {name!r}{hint or ';'} the options are: {', '.join(known)}"


def check_options(options: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        TypeError: one of ``options`` is not ``known``.
    """
    known = set(known)
    for name in options:
        if name not in known:
            raise TypeError(unknown_option(name, known))


def describe(function: Any) -> str:
    """A callable as its definition is written: ``chat(request, socket)``."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    signature = _signature(function)
    return f"{name}{signature or '()'}".replace("<lambda>", "lambda")


def _signature(function: Any) -> inspect.Signature | None:
    """None for what has none, such as functions in C."""
    try:
        # A decorator may add arguments, so the wrapped function does not count.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)


def fits(function: Any, *args: Any, **kwargs: Any) -> str | None:
    """Why ``function`` cannot be called with these arguments; None if it can."""
    signature = _signature(function)
    if signature is None:
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def explains(usage: str, hints: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Decorates a function: if a call does not fit its arguments, the TypeError shows its
    ``usage``, or the hint for an argument of another library, from ``hints``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TypeError:
                reason = fits(function, *args, **kwargs)
                if reason is None:
                    raise
            name = next((name for name in kwargs if name in (hints or ())), None)
            hint = f"write {usage}" if name is None or hints is None else hints[name]
            raise TypeError(
                f"{function.__qualname__.removesuffix('.__init__')}(): {reason}; {hint}"
            )

        return call  # type: ignore[return-value]

    return decorate


def _is(test: Callable[[Any], bool], function: Any) -> bool:
    """``test`` of a function, or of the ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return test(function) or (
        not inspect.isroutine(function)
        and not isinstance(function, type)
        and test(getattr(type(function), "__call__", None))  # noqa: B004
    )


def check_function(function: Any, what: str, *args: str, **kwargs: str) -> None:
    """Checks a plain function that will be called with these arguments, given by their names.

    ``what`` names its purpose in the message, such as "a session".

    Raises:
        TypeError: it is not callable; it is ``async def`` or a generator, whose body a call would
            not run; or it does not accept the arguments.
    """
    call = f"({', '.join([*args, *kwargs])})"
    if not callable(function):
        raise TypeError(f"{what} is a function {call}, not {function!r}")
    if _is(inspect.iscoroutinefunction, function) or _is(inspect.isasyncgenfunction, function):
        raise TypeError(
            f"{what} is a plain function, but {describe(function)} is 'async def': leave out "
            "'async' and 'await'. Blocking calls block only their own greenlet"
        )
    if _is(inspect.isgeneratorfunction, function):
        raise TypeError(
            f"{what} is a plain function, but {describe(function)} has a 'yield', so that calling "
            "it would run nothing. To send something, call socket.send()"
        )
    reason = fits(function, *args, **kwargs)
    if reason is not None:
        raise TypeError(
            f"{what} is called with {call}, but {describe(function)} does not fit: {reason}"
        )
    parameters = getattr(_signature(function), "parameters", {}).values()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in parameters if each.kind in places][: len(args)]
    first, last = (names[0], names[-1]) if names and len(names) == len(args) else ("", "")
    if (
        (last in _REQUESTS and args[-1:] != ("request",))
        or (args[-1:] == ("protocols",) and last in _SOCKETS)
        or (args[:1] == ("request",) and first in _SOCKETS)
    ):
        raise TypeError(
            f"{what} is called with {call}, in this order, which {describe(function)} does not have"
        )


def check_result(function: Any, result: Any) -> None:
    """Checks what a session's function has returned: a decorator may hide that it is ``async def``
    or a generator, and a value other than None is ignored, which is logged once for each function.

    Raises:
        TypeError: the function has not run, as it is ``async def`` or a generator.
    """
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
        raise TypeError(
            f"{describe(function)} returned {result!r}, which runs nothing: the function that it "
            "calls must be a plain one, without 'async' and 'yield'"
        )
    if result is None:
        return
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", type(function))
    if code not in _warned_results:
        _warned_results.add(code)
        _logger.warning(
            "%s returned %.200r, which is ignored: a session sends with socket.send()%s",
            describe(function),
            result,
            "" if not hasattr(result, "status_code") else f" ({REFUSE_EARLIER})",
        )


class Registration:
    """A function that a decorator of ours has registered, with a decorator above it.

    A decorator above ours (``@login_required`` above ``@routes.websocket``) gets the function after
    us. If it returns another, the name means that one from then on, and no session ever calls it.
    This is known when the definition is complete, so the module's namespace is kept until then.

    Only definitions at the top level of a module are checked: those in a function or a class would
    need their frame, which would keep all that its callers have.
    """

    def __init__(
        self, function: Any, code: CodeType, decorator: str, owner: Any, namespace: dict[str, Any]
    ) -> None:
        line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
        self._above = line if line.startswith("@") else "a decorator"
        self._decorators = [decorator]
        self._place = f"({code.co_filename}, line {code.co_firstlineno})"
        self._name = code.co_name
        self._owner = None if owner is None else ref(owner)
        self._is_wrong = False
        before = namespace.get(code.co_name)
        self._open: tuple[Any, Any, dict[str, Any]] | None = function, before, namespace
        _registrations[id(self)] = self

    @classmethod
    def of(cls, function: Any, decorator: str, owner: Any = None) -> Registration | None:
        """To be called by a decorator of ours; None if it is the topmost of a definition, if it is
        not used as a decorator, or if that is not known. ``owner``: the Routes of the session."""
        try:
            frame = sys._getframe(2)
            code = inspect.unwrap(function).__code__
        except (AttributeError, ValueError):  # no caller in Python; no function, or a cycle
            return None
        namespace = frame.f_globals
        if frame.f_locals is not namespace or not _is_below_a_decorator(code, frame):
            return None
        for other in list(_registrations.values()):
            if other._is_below(function, owner):
                other._decorators.insert(0, decorator)
                return other
        return cls(function, code, decorator, owner, namespace)

    def _is_below(self, function: Any, owner: Any) -> bool:
        """Whether it is of a route directly below another one, whose decorator has ``owner``."""
        has_owner = owner is (None if self._owner is None else self._owner())
        return has_owner and self._open is not None and self._open[0] is function

    def check(self) -> None:
        """
        Raises:
            TypeError: a decorator above ours has no effect.
        """
        if self.is_wrong():
            ours = " and ".join(self._decorators)
            raise TypeError(  # a new one: an error keeps the frames that it went through
                f"{self._above} is above {ours} {self._place}, so the session {self._name} runs "
                f"without it: put {ours} on top"
            )

    def is_wrong(self) -> bool:
        definition = self._open
        if definition is not None:
            function, before, namespace = definition
            bound = namespace.get(self._name)
            if bound is not before:  # else the decorators above are still running
                self._is_wrong = _wraps(bound, function)
                self._open = None  # after the result: another thread may ask at the same time
        return self._is_wrong

    def is_of_another(self, owners: set[int]) -> bool:
        """Whether it belongs to a Routes whose id is not in ``owners``."""
        return self._owner is not None and id(self._owner()) not in owners


_registrations: WeakValueDictionary[int, Registration] = WeakValueDictionary()


def check_registrations(application: Any = None) -> None:
    """
    ``application``: what will be served. If it is a Routes, other Routes do not count.

    Raises:
        TypeError: a decorator has no effect on a session that was registered before.
    """
    if _find_wrong(application) is not None:
        gc.collect()  # of a module that was loaded again, for example
        wrong = _find_wrong(application)
        if wrong is not None:
            wrong.check()


def _find_wrong(application: Any) -> Registration | None:
    routes = _routes_in(application)
    for reference in _registrations.valuerefs():
        registration = reference()
        if registration is None or (routes and registration.is_of_another(routes)):
            continue
        if registration.is_wrong():
            return registration
    return None


def _routes_in(application: Any) -> set[int]:
    """The ids of a Routes and of those that it leads to; none if it is something else."""
    found: set[int] = set()
    left = [application]
    while left:
        each = left.pop()
        # Not by its class, whose module imports this one.
        handlers = getattr(type(each), "handlers", None)
        is_routes = isinstance(handlers, property) and hasattr(type(each), "websocket")
        if is_routes and id(each) not in found:
            found.add(id(each))
            left.extend(each.handlers)
    return found


def _is_below_a_decorator(code: CodeType, frame: FrameType) -> bool:
    """Whether ``frame`` is calling a decorator of the function with this ``code``, and it is not
    the topmost one."""
    if not any(constant is code for constant in frame.f_code.co_consts):
        return False  # defined elsewhere
    first = code.co_firstlineno  # that of the topmost decorator
    body = [line for _, _, line in code.co_lines() if line is not None and line > first]
    if not body or frame.f_lineno > min(body):
        return False  # called after the definition
    if sys.version_info >= (3, 11):
        return frame.f_lineno > first
    # There the line of a call is that of the "def". The next decorator is called with the result.
    return dis.opname[frame.f_code.co_code[frame.f_lasti + 2]] == "CALL_FUNCTION"


def _wraps(bound: Any, function: Any) -> bool:
    """Whether ``bound`` is what a decorator has made of ``function``."""
    try:
        return bound is not function and _leads_to(function, bound)
    except Exception:  # an object that answers for another, such as a LocalProxy
        return False


def _leads_to(function: Any, bound: Any) -> bool:
    for _ in range(_MAX_DECORATORS):
        if bound is function:
            return True
        if not callable(bound) or isinstance(bound, (type, staticmethod, classmethod)):
            return False
        inner = getattr(bound, "__wrapped__", None) or getattr(bound, "func", None)
        if inner is None:
            cells = getattr(bound, "__closure__", None) or ()
            return any(_content(cell) is function for cell in cells)
        bound = inner
    return False


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def not_a_handler(result: Any) -> TypeError:
    """The error for a producer's result that is not a session's handler."""
    text = f"the handler producer must return a WebSocketSessionHandler or None, not {result!r}"
    if isinstance(result, type):
        if callable(getattr(result, "handle_session", None)):
            text += f": return an instance of it, {result.__qualname__}()"
    elif type(result).__name__ == "WebSocketHandler":
        text += ": that is an application, which calls this producer; return the session's handler"
    elif inspect.isroutine(result):
        text += (
            "; an instance of a class with handle_session(self, request, socket), as in "
            "'return Echo()'. A function (request, socket) is a session itself and needs no "
            "producer"
        )
    return TypeError(text)


def check_application(application: Any, what: str) -> None:
    """Checks a WSGI application as far as that is possible without calling it.

    Raises:
        TypeError: it is not callable, or it cannot be called with ``(environ, start_response)``.
    """
    takes = f"{what} is a WSGI application, called with (environ, start_response)"
    if isinstance(application, str):
        raise TypeError(f"{takes}: the object itself, not its name {application!r}")
    if not callable(application):
        hint = ""
        if callable(getattr(application, "handle_session", None)):
            hint = "; give it a WebSocketHandler(lambda request, protocols: ...) that returns it"
        elif isinstance(application, ModuleType):
            hint = f"; the module's application, such as {application.__name__}.app"
        elif hasattr(application, "add_url_rule"):
            hint = "; register the blueprint with a Flask application, and give that"
        elif hasattr(application, "init_app"):
            hint = "; give the application that it was made for"
        elif isinstance(application, (int, tuple)) and what.endswith("WebSocketServer"):
            hint = "; the address comes first, as one argument: WebSocketServer((host, port), app)"
        raise TypeError(f"{takes}, not {application!r}{hint}")
    if _is(inspect.iscoroutinefunction, application):
        raise TypeError(
            f"{takes}; {application!r} is 'async': for an ASGI application, put "
            "a2wsgi.ASGIMiddleware(application) there"
        )
    reason = fits(application, {}, None)
    if isinstance(application, type):
        # Calling such a class may be calling an application, whose instances are iterable results
        # (PEP 3333), unless the instances can be called.
        if reason or any("__call__" in vars(base) for base in application.__mro__[:-1]):
            name = application.__qualname__
            raise TypeError(f"{takes}, not the class {name}: give an instance of it")
    elif reason is None:
        names = list(getattr(_signature(application), "parameters", ()))[:2]
        if names == ["request", "socket"] or names[:1] and names[0] in _SOCKETS:
            raise TypeError(
                f"{takes}; {describe(application)} is a session: write "
                f"@routes.websocket(path) above it, and (request, socket)"
            )
        if names == ["request", "protocols"]:
            raise TypeError(
                f"{takes}; {describe(application)} is a producer: give "
                f"WebSocketHandler({getattr(application, '__name__', 'producer')})"
            )
        if names == ["host", "port"]:
            raise TypeError(
                f"{takes}; {describe(application)} runs a server of its own: give the application "
                "itself, such as app and not app.run"
            )
    else:
        hint = ""
        if inspect.isfunction(application) and fits(application) is None:
            name = application.__name__.replace("<lambda>", "make_app")
            hint = f"; if it makes the application, give what it returns: {name}()"
        raise TypeError(f"{takes}; {describe(application)} does not fit: {reason}{hint}")


def check_close(code: Any, reason: Any) -> None:
    """
    Raises:
        TypeError: ``code`` is not a number, or ``reason`` not a str.
        ValueError: ``code`` is a float.
    """
    if isinstance(code, str):
        raise TypeError(f"the close code is an int: close(1000, {code!r}), not close({code!r})")
    if isinstance(code, float):
        raise ValueError(f"the close code must be an int such as 1000, not {code!r}")
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"the close code must be an int such as 1000, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"the close reason must be a str, not {reason!r}")


def check_sendable(code: int, reason: str, client: bool = False) -> None:
    """Checks a code and a reason that have passed :func:`check_close`.

    Raises:
        ValueError: ``code`` may not be sent, or ``reason`` is longer than 123 bytes.
    """
    if not is_sendable(code, client):
        raise ValueError(f"close code {code} may not be sent; use 1000, 1001, 1011 or 3000 to 4999")
    size = len(reason.encode())
    if size > MAX_REASON:
        raise ValueError(f"close reason must be at most {MAX_REASON} bytes, not {size}")


def wrong_message(data: Any) -> TypeError:
    """The error for data that is not a message."""
    text = f"message must be a str or a bytes-like object, not {type(data).__name__}"
    if isinstance(data, (dict, list, tuple, int, float)):
        text += "; to send JSON: send(json.dumps(...))"
    elif data is not None:
        text += "; to send its text: send(str(...))"
    return TypeError(text)


class Hint:
    """An attribute that exists in other libraries only: reading it raises an error that says what
    to use here."""

    def __init__(self, name: str, instead: str) -> None:
        self._name = name
        self._instead = instead

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        kind = owner or type(instance)
        raise AttributeError(
            f"{kind.__name__!r} object has no attribute {self._name!r}; use {self._instead}"
        )


def check_number(name: str, value: Any, what: str = "a number of seconds or None") -> None:
    """
    Raises:
        TypeError: ``value`` is neither a number nor None.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{name} must be {what}, not {value!r}")
