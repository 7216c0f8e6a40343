"""A Flask application under Sentry's SDK and OpenTelemetry, which print what they would send."""

from __future__ import annotations

import sys
from typing import Any

import flask
import sentry_sdk
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.transport import Transport

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler


class PrintedEvents(Transport):
    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event() or envelope.get_transaction_event()
        if event is not None:
            kind = event.get("type", "error")
            errors = [each["type"] for each in event.get("exception", {}).get("values", [])]
            status = event.get("contexts", {}).get("trace", {}).get("status")
            print("sentry", kind, event["transaction"], status, *errors, flush=True)


class PrintedSpans(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            events = [event.attributes["exception.type"] for event in span.events]
            print("span", span.name, span.status.status_code.name, *events, flush=True)
        return SpanExportResult.SUCCESS


sentry_sdk.init(
    dsn="http://key@localhost/1",
    transport=PrintedEvents,
    integrations=[FlaskIntegration()],
    traces_sample_rate=1.0,
)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(PrintedSpans()))
trace.set_tracer_provider(provider)

app = flask.Flask(__name__)
FlaskInstrumentor().instrument_app(app)


class Session(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        for message in socket:
            if message == "fail":
                raise LookupError("of the session")
            socket.send(message)


@app.get("/ws")
def ws() -> Any:
    return WebSocketHandler(lambda request, protocols: Session())


if __name__ == "__main__":
    if "--spans-end-at-101" in sys.argv:
        from greenws.integrations import tracing

        tracing.install()
    server = WebSocketServer(("127.0.0.1", 0), app, log=None)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
