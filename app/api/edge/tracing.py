"""Spans of requests, exported to an OpenTelemetry collector.

`create_app` imports this module only if a collector is configured. The spans are made when a request has ended, from
the times in its record, which takes about 0.2 ms for its four spans. Another thread sends them.

Names follow OpenTelemetry's semantic conventions for HTTP and for generative AI; `gen_ai.latency.*` and
`gen_ai.request.id` are vLLM's.
"""

import threading
import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from ...core.sampling import SamplingParams
from ...core.wire import RequestTiming
from ...version import __version__
from .request_log import RequestLog

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/v1/score": "score",
    "/v1/classify": "classify",
}
"""The paths whose requests have spans."""
_MOST_TEXTS = 16
"""A call of more texts gets the phases of all of them together, since an encoder's call may have thousands."""
_CLOSE_SECONDS = 2.0
"""How long to wait for the last spans to be sent. The supervisor waits little longer for the process."""

_Attributes = dict[str, AttributeValue]


class Tracing:
    """Makes the spans of ended requests, and sends them in batches."""

    def __init__(self, endpoint: str) -> None:
        """Everything but the endpoint is configured by OpenTelemetry's own variables, such as OTEL_SERVICE_NAME."""
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "paceline"}))
        # Not set as the global provider, for which libraries would make spans of their own.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("paceline", __version__)

    def record(self, scope: Scope, entry: RequestLog, model: str) -> str | None:
        """Record a request that has ended. Returns the id of its trace; None for a path without traces."""
        operation = _OPERATIONS.get(scope["path"])
        if operation is None or scope["method"] != "POST":
            return None
        now = time.monotonic()
        clock = _Clock()
        attributes = _http(scope, entry) | {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "paceline",
            "gen_ai.request.id": entry.request_id,
            "paceline.tenant": entry.tenant.name,
        }
        name = operation
        if entry.usage is not None:  # else it was refused before it reached the model
            attributes |= _generation(entry, model, now)
            name = f"{operation} {model}"
        start = clock.at(entry.arrived_at)
        span = self._tracer.start_span(name, _caller(scope), SpanKind.SERVER, attributes, start_time=start)
        if span.is_recording():
            self._record_phases(entry, set_span_in_context(span), clock)
        if entry.error_type is not None:
            span.set_attribute("error.type", entry.error_type)
            if not 400 <= entry.status < 500:  # a 4xx is the client's error, not this span's
                span.set_status(Status(StatusCode.ERROR, entry.error))
        span.end(clock.at(now))
        return format_trace_id(span.get_span_context().trace_id)

    def _record_phases(self, entry: RequestLog, context: Context, clock: "_Clock") -> None:
        timings = entry.timings
        if len(timings) > _MOST_TEXTS and (whole := entry.whole_timing()):
            timings = {0: whole}
        for index, timing in timings.items():
            attributes: _Attributes = {"paceline.index": index} if len(timings) > 1 else {}
            for name, start, end in _phases(timing):
                span = self._tracer.start_span(name, context, attributes=attributes, start_time=clock.at(start))
                span.end(clock.at(end))

    def close(self) -> None:
        """Send the remaining spans, if that takes no longer than a short while."""
        # In a daemon thread, since without a collector the provider would wait for half a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class _Clock:
    """Turns `time.monotonic()` into nanoseconds since 1970, with one offset for all spans of a request."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def at(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._offset


def _phases(timing: RequestTiming) -> Iterator[tuple[str, float, float]]:
    yield "queue", timing.arrived_at, timing.scheduled_at
    yield "prefill", timing.scheduled_at, timing.first_token_at
    if timing.finished_at > timing.first_token_at:
        yield "decode", timing.first_token_at, timing.finished_at


def _caller(scope: Scope) -> Context:
    """The caller's span, if the request's headers name one (W3C Trace Context)."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            headers.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return TraceContextTextMapPropagator().extract(headers, Context())


def _http(scope: Scope, entry: RequestLog) -> _Attributes:
    attributes: _Attributes = {
        "http.request.method": scope["method"],
        "http.route": scope["path"],  # these paths have no parameters
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
    }
    if entry.status:
        attributes["http.response.status_code"] = entry.status
    return attributes


def _generation(entry: RequestLog, model: str, now: float) -> _Attributes:
    assert entry.usage is not None
    attributes: _Attributes = {
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": entry.usage.prompt_tokens,
        "gen_ai.latency.e2e": now - entry.arrived_at,
    }
    if entry.sampling is not None:
        attributes |= _sampling(entry.sampling)
        attributes["gen_ai.request.stream"] = entry.is_stream
        attributes["gen_ai.response.finish_reasons"] = [
            str(reason) for _, reason in sorted(entry.finish_reasons.items())
        ]
        attributes["gen_ai.usage.output_tokens"] = entry.usage.completion_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = entry.usage.cached_tokens
        if entry.num_choices != 1:
            attributes["gen_ai.request.choice.count"] = entry.num_choices
    if entry.response_id is not None:
        attributes["gen_ai.response.id"] = entry.response_id
    if entry.ttft is not None:
        attributes["gen_ai.latency.time_to_first_token"] = entry.ttft
    timing = entry.whole_timing()
    if timing is not None:
        attributes["gen_ai.latency.time_in_queue"] = timing.scheduled_at - timing.arrived_at
        attributes["gen_ai.latency.time_in_model_prefill"] = timing.first_token_at - timing.scheduled_at
        attributes["gen_ai.latency.time_in_model_decode"] = timing.finished_at - timing.first_token_at
        attributes["gen_ai.latency.time_in_model_inference"] = timing.finished_at - timing.scheduled_at
    return attributes


def _sampling(sampling: SamplingParams) -> _Attributes:
    """The sampling parameters that were used, defaults included."""
    attributes: _Attributes = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
    }
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = float(sampling.top_k)
    return attributes
