"""Mistakes in calls of greenws, found where they are written and not at the first client.

Each function raises TypeError, with what was given and what to write instead.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = [
    "REFUSE_EARLIER",
    "check_application",
    "check_close",
    "check_function",
    "check_number",
    "check_options",
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
_told_of_results: WeakSet[Any] = WeakSet()  # the code of functions

REFUSE_EARLIER = (
    "refuse before the upgrade: in Flask's before_request, in the handler producer, or in the view "
    "that returns a WebSocketHandler"
)

_REQUESTS = ("request", "req")
_SOCKETS = ("socket", "sock", "ws", "websocket")

# Names that options have in other libraries.
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
    """The name among ``known`` that was probably meant by ``name``."""
    found = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return found[0] if found else None


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of an option that does not exist, where the ``known`` ones do."""
    known = sorted(known)
    if name in ("method", "methods"):
        return f"unknown option {name!r}: a handshake is always a GET, so leave it out"
    if name == "protocols" and not {"protocols", "subprotocols"}.intersection(known):
        return (
            "unknown option 'protocols': the producer gets those that the client offers, and the "
            "session's handler that it returns has the one that it speaks, as its socket_protocol"
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
        # A decorator may add arguments, so what it wraps does not count.
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
    """Decorates a function, so that the TypeError of a call that does not fit its arguments tells
    its ``usage``; or, of an argument that other libraries have, the one of ``hints``."""

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
    while hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial
        function = function.func
    return test(function) or (
        not inspect.isroutine(function)
        and not isinstance(function, type)
        and test(getattr(type(function), "__call__", None))  # noqa: B004
    )


def check_function(function: Any, what: str, *args: str, **kwargs: str) -> None:
    """Checks a plain function that will be called with such arguments, here by their names.

    ``what`` it is for, in the message: "a session".

    Raises:
        TypeError: it is not callable; it is ``async def`` or a generator, whose body a call would
            not run; or it does not take the arguments.
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
            f"{what} is called with {call}, in this order, and {describe(function)} has others"
        )


def check_result(function: Any, result: Any) -> None:
    """Checks what a session's function has returned: a decorated one hides its kind, and what it
    returns beside None goes nowhere, which is logged once for each function.

    Raises:
        TypeError: nothing of the function has run, as it was ``async def`` or a generator.
    """
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
        raise TypeError(
            f"{describe(function)} returned {result!r}, which runs nothing: the function that it "
            "calls must be a plain one, without 'async' and 'yield'"
        )
    if result is None:
        return
    while hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial
        function = function.func
    code = getattr(function, "__code__", type(function))
    if code not in _told_of_results:
        _told_of_results.add(code)
        _logger.warning(
            "%s returned %.200r: a session sends with socket.send(); what it returns goes "
            "nowhere%s",
            describe(function),
            result,
            "" if not hasattr(result, "status_code") else f" ({REFUSE_EARLIER})",
        )


def not_a_handler(result: Any) -> TypeError:
    """The error for what a producer has returned that is no handler of a session."""
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
        elif isinstance(application, (int, tuple)):
            hint = "; the address comes first, as one argument: WebSocketServer((host, port), app)"
        raise TypeError(f"{takes}, not {application!r}{hint}")
    if _is(inspect.iscoroutinefunction, application):
        raise TypeError(
            f"{takes}; {application!r} is 'async': for an ASGI application, put "
            "a2wsgi.ASGIMiddleware(application) there"
        )
    reason = fits(application, {}, None)
    if isinstance(application, type):
        # An instance of such a class may be what an application returns (PEP 3333), unless it can
        # be called itself.
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
        raise TypeError(f"{takes}; {describe(application)} does not fit: {reason}")


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


def wrong_message(data: Any) -> TypeError:
    """The error for what is no message."""
    text = f"message must be a str or a bytes-like object, not {type(data).__name__}"
    if isinstance(data, (dict, list, tuple, int, float)):
        text += "; to send JSON: send(json.dumps(...))"
    elif data is not None:
        text += "; to send its text: send(str(...))"
    return TypeError(text)


class Hint:
    """An attribute that is not there, under the name that it has in other libraries: asking for it
    says what to use."""

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
