"""An OpenTelemetry collector on the loopback: it takes OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass
class ReceivedSpan:
    """A span as the protocol's own messages have it, its ids in hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int  # nanoseconds since 1970
    end: int
    attributes: dict[str, Any]
    status: int  # 0 unset, 2 error
    message: str
    resource: dict[str, Any]

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


@dataclasses.dataclass
class Collector:
    """A receiver, and what has come."""

    port: int
    spans: list[ReceivedSpan]
    paths: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self) -> list[ReceivedSpan]:
        """The spans that have come since the last call, in the order of their beginnings."""
        spans, self.spans[:] = sorted(self.spans, key=lambda span: span.start), []
        return spans


def value_of(value: Any) -> Any:
    """A Python value of an AnyValue."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return getattr(value, kind)


def attributes_of(message: Any) -> dict[str, Any]:
    return {each.key: value_of(each.value) for each in message.attributes}


def spans_of(body: bytes) -> list[ReceivedSpan]:
    """The spans of an export request."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        ReceivedSpan(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.kind,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            attributes_of(span),
            span.status.code,
            span.status.message,
            attributes_of(group.resource),
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    received: list[ReceivedSpan] = []
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            paths.append(self.path)
            received.extend(spans_of(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield Collector(server.server_address[1], received, paths)
        server.shutdown()
        thread.join(30)
