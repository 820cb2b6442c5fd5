"""An OTLP receiver, like a collector of traces: it keeps what it receives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    links: list[str]
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Collector:
    url: str
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[ReceivedSpan]:
        return [span for body in self.bodies for span in _read(body)]

    async def trace(self, trace_id: str) -> dict[str, ReceivedSpan]:
        """The spans of one trace, by id."""
        return {span.span_id: span for span in self.spans() if span.trace_id == trace_id}


@contextmanager
def collector(port: int = 0, *, hangs: bool = False) -> Iterator[Collector]:
    """Run a receiver, by default on a port of its own. One that hangs takes requests and never answers them."""
    leave = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            if hangs:
                leave.wait()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    received = Collector(f"http://127.0.0.1:{server.server_port}")
    serving = threading.Thread(target=server.serve_forever, args=[0.05])
    serving.start()
    try:
        yield received
    finally:
        leave.set()
        server.shutdown()
        server.server_close()
        serving.join()


def _read(body: bytes) -> Iterator[ReceivedSpan]:
    for process in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = next(each.value.string_value for each in process.resource.attributes if each.key == "service.name")
        for span in (span for scope in process.scope_spans for span in scope.spans):
            yield ReceivedSpan(
                span.name,
                service,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                [link.trace_id.hex() for link in span.links],
                {each.key: each.value.string_value or each.value.int_value for each in span.attributes},
                span.status.code == span.status.STATUS_CODE_ERROR,
            )
