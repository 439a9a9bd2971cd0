"""A minimal collector of traces."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.patience import wait_until


class Collector:
    """The requests that a collector has received."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"
        self.bodies: list[bytes] = []

    @property
    def exports(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        groups = [group for export in self.exports for group in export.resource_spans]
        return [span for group in groups for scope in group.scope_spans for span in scope.spans]

    def request(self, request_id: str) -> Span:
        """The span of a request, as soon as it is there; AssertionError if there are several."""
        wait_until(lambda: self._requests(request_id))
        (span,) = self._requests(request_id)
        return span

    def _requests(self, request_id: str) -> list[Span]:
        return [span for span in self.spans if attributes(span.attributes).get("gen_ai.request.id") == request_id]

    def phases(self, parent: Span) -> list[Span]:
        """The spans inside a request's span, by time. They have arrived before it."""
        spans = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(spans, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


def attributes(pairs: Any) -> dict[str, Any]:
    """OpenTelemetry's attributes as a dictionary."""
    found: dict[str, Any] = {}
    for pair in pairs:
        assert isinstance(pair, KeyValue)
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
