"""Traces (OpenTelemetry) from the HTTP request through workflow and activities to each MongoDB command.

They are on if OTEL_EXPORTER_OTLP_ENDPOINT is set. Otherwise the SDK is not imported, and all of this does nothing. The
SDK reads its own settings (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...).

A span holds names, ids and times, never personal data (G11): texts of exceptions, URLs and all else that a client may
have written are dropped before they are exported.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context, propagate, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pymongo import monitoring

from app import temporal
from app.names import NAME, WORKFLOW_ID_PREFIX

IS_ON = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
if TYPE_CHECKING or IS_ON:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, create_tracer_provider
else:
    OTLPSpanExporter = BatchSpanProcessor = object

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 2.0  # seconds
MAX_ORDERS = 10_000
# What is exported of a span, beside its status without the text. Add the attributes of your own spans.
FIELDS = ("name", "context", "parent", "resource", "links", "kind", "start_time", "end_time", "instrumentation_scope")
ATTRIBUTES = {"http.request.method", "http.response.status_code", "http.route", "error.type", "temporalActivityID"}
ATTRIBUTES |= {"temporalWorkflowID", "temporalRunID", "db.system.name", "db.operation.name", "db.collection.name"}

T = TypeVar("T")
Span = trace.Span
current_span = trace.get_current_span
_tracer = trace.get_tracer(NAME)
_propagator = TraceContextTextMapPropagator()
_trace_ids = OrderedDict[str, int]()  # of the newest orders that this process has worked on
_commands: dict[tuple[Any, int], Span] = {}  # in progress, by connection and request


# --- what the rest of the program uses


def configure(service: str) -> None:
    """Set up tracing, before the clients of MongoDB and Temporal are made.

    Args:
        service: the name of this process in traces, unless OTEL_SERVICE_NAME has one.

    Raises:
        SystemExit: a setting is wrong.
    """
    if not IS_ON:
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    try:
        provider = create_tracer_provider(shutdown_on_exit=False)  # `shutdown` has a time limit
        provider.add_span_processor(Processor(Exporter()))
    except ValueError as error:
        raise SystemExit(f"wrong setting: OTEL_*: {error}") from None
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # of its lines on each failure, `Exporter` logs one
    trace.set_tracer_provider(provider)
    propagate.set_global_textmap(Traceparent())
    monitoring.register(MongoSpans())
    temporal.PLUGINS.append(OpenTelemetryPlugin(add_temporal_spans=True))


def shutdown() -> None:
    """Export the last spans, unless it takes longer than `FLUSH_TIMEOUT`: the collector may hang."""
    flush = getattr(trace.get_tracer_provider(), "shutdown", None)  # the API's own provider has none
    if flush is not None:
        flushing = Thread(target=flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT)


def traceparent() -> str | None:
    """Return the current trace and span (W3C Trace Context), to be stored with an order."""
    _propagator.inject(carrier := dict[str, str]())
    return carrier.get("traceparent")


def resume(traceparent: object) -> None:
    """Continue a stored trace in this task, unless it has one of its own. Another program may have stored anything."""
    if not current_span().is_recording():
        context.attach(_propagator.extract({"traceparent": str(traceparent)}))


def shared_span(commit: Callable[[Any, list[Any]], Awaitable[T]]) -> Callable[[Any, list[Any]], Awaitable[T]]:
    """Trace a method that works for several requests, each with its `span`: in a trace with links to and from each.

    Work for a single one is a child of its span.
    """

    @wraps(commit)
    async def traced(owner: Any, requests: list[Any]) -> T:
        callers = [request.span for request in requests]
        several = callers if len(callers) > 1 else ()
        parent = context.Context() if several else trace.set_span_in_context(callers[0])
        links = [trace.Link(caller.get_span_context()) for caller in several]
        with _tracer.start_as_current_span("GroupCommit", parent, links=links) as span:
            for caller in several:
                caller.add_link(span.get_span_context())
            return await commit(owner, requests)

    return traced


def trace_id(order_id: str | None) -> str | None:
    """Return the id of the current trace, or else of the order's."""
    number = current_span().get_span_context().trace_id or _trace_ids.get(order_id or "")
    return trace.format_trace_id(number) if number else None


# --- what the SDK uses


class Traceparent(TraceContextTextMapPropagator):
    """Takes only the ids from a request: its baggage and tracestate would be copied into the workflow's history."""

    def extract(self, carrier: Any, *args: Any, getter: Any) -> context.Context:  # type: ignore[override]
        return super().extract({"traceparent": getter.get(carrier, "traceparent")}, *args)


class Processor(BatchSpanProcessor):
    """Also notes the trace of each order, for log lines outside of its spans."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        # Not a later request for the order, which has a trace of its own.
        if span.name.startswith(("StartWorkflow:", "RunWorkflow:", "RunActivity:")):
            workflow_id = span.attributes["temporalWorkflowID"]
            _trace_ids[workflow_id.removeprefix(WORKFLOW_ID_PREFIX)] = span.context.trace_id
            if len(_trace_ids) > MAX_ORDERS:
                _trace_ids.popitem(last=False)


class Exporter(OTLPSpanExporter):
    """Drops what may be personal. Logs when exports begin to fail, and when they work again."""

    _works = True

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        result = super().export([_redacted(span) for span in spans])
        if self._works is not (result is SpanExportResult.SUCCESS):
            self._works = not self._works
            logger.warning("traces are %s", "exported again" if self._works else "lost: the collector is unavailable")
        return result


def _redacted(span: "ReadableSpan") -> "ReadableSpan":
    fields = {field: getattr(span, field) for field in FIELDS}
    attributes = {name: value for name, value in (span.attributes or {}).items() if name in ATTRIBUTES}
    return ReadableSpan(**fields, attributes=attributes, status=trace.Status(span.status.status_code))


class MongoSpans(monitoring.CommandListener):
    """A span for each command below a traced request or activity: none for change streams and the relay."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if current_span().is_recording():
            target = event.command.get("collection", event.command.get(event.command_name))
            names = [event.command_name, *([target] if isinstance(target, str) else [])]
            attributes = dict(zip(("db.operation.name", "db.collection.name"), names, strict=False))
            span = _tracer.start_span(" ".join(names), kind=trace.SpanKind.CLIENT, attributes=attributes)
            span.set_attribute("db.system.name", "mongodb")
            _commands[event.connection_id, event.request_id] = span

    def succeeded(self, event: Any) -> None:
        if span := _commands.pop((event.connection_id, event.request_id), None):
            span.end()

    def failed(self, event: Any) -> None:
        if span := _commands.get((event.connection_id, event.request_id)):
            span.set_status(trace.StatusCode.ERROR)
            span.set_attribute("error.type", str(event.failure.get("codeName") or event.failure.get("errtype")))
        self.succeeded(event)
