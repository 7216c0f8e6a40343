"""Sentry and OpenTelemetry: the span of a request ends with the 101, and a session has its own.

Without this, the span of a request under a framework lasts as long as its session, often hours.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from ..session import around_sessions

__all__ = ["install"]


def install(*, session_spans: bool = True) -> None:
    """Ends the current transaction of Sentry and span of OpenTelemetry (those that the program has
    imported) when a handshake is accepted inside a framework.

    ``session_spans``: whether each session then has its own transaction or span, linked to that of
    its request, in which its error is recorded.
    """

    @contextlib.contextmanager
    def around(request: Any, socket: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if "sentry_sdk" in sys.modules:
                _sentry(request, stack, session_spans)
            if "opentelemetry.trace" in sys.modules:
                _opentelemetry(request, stack, session_spans)
            yield

    around_sessions[:] = [around]


def _sentry(request: Any, stack: contextlib.ExitStack, session_spans: bool) -> None:
    sdk: Any = sys.modules["sentry_sdk"]
    transaction = sdk.get_current_scope().transaction
    if transaction is None:
        return
    transaction.set_http_status(101)
    transaction.finish()  # the framework's integration calls it again, which does nothing
    if session_spans:
        options = {"op": "websocket.session", "name": transaction.name or request.path}
        options["trace_id"] = transaction.trace_id
        options["parent_span_id"] = transaction.span_id
        stack.enter_context(sdk.start_transaction(**options))


def _opentelemetry(request: Any, stack: contextlib.ExitStack, session_spans: bool) -> None:
    trace: Any = sys.modules["opentelemetry.trace"]
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("http.response.status_code", 101)
    span.end()
    span.end = _nothing  # the instrumentation calls it again, and the SDK would warn
    if session_spans:
        link = trace.Link(span.get_span_context())
        name = f"{span.name} session"
        tracer = trace.get_tracer("greenws")
        stack.enter_context(tracer.start_as_current_span(name, links=[link]))


def _nothing(end_time: int | None = None) -> None:
    pass
