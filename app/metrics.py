"""Prometheus metrics. Callers record events, and `render` gives the text.

Names follow those of other servers, vLLM's above all, with the prefix `paceline_`. Recording takes a few microseconds,
because some events are recorded for every token of every stream.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .core.request import FinishReason
from .core.wire import EngineStats, RequestTiming
from .errors import rejections
from .version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST

_PREFIX = "paceline"
ModelState = Literal["ready", "loading", "asleep", "failed"]
"""Whether a model can answer now, or what stands in the way."""


def _seconds(first: float, last: float) -> list[float]:
    """Bucket bounds from `first` to `last` in the steps 1, 2.5, 5, 10."""
    return list(_steps(first, last))


def _steps(first: float, last: float) -> Iterator[float]:
    decade = first
    while True:
        for factor in (1.0, 2.5, 5.0):
            bound = round(decade * factor, 9)
            if bound > last:
                return
            yield bound
        decade *= 10


_TOKEN_BUCKETS = [float(2**power) for power in range(15)]


SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with a folder in which several processes count together. It has to be set before
prometheus_client is imported."""


class Metrics:
    """The metrics of one process, in a registry of its own, or of all API workers if SHARED_FOLDER is set."""

    def __init__(
        self,
        num_restarts: Callable[[], int] = lambda: 0,
        proposer: str = "ngram",
        model: str | None = None,
        beside: "Metrics | None" = None,
        state: Callable[[], ModelState] = lambda: "ready",
    ) -> None:
        """`num_restarts`: the number of engines that replaced one that died. `proposer`: of drafts.

        model: one of several, whose metrics have its name as a label. beside: of the first of them; all are rendered
        together. state: the model's.
        """
        self._proposer = proposer
        self._model = model
        self._are_shared = SHARED_FOLDER in os.environ
        self._registry: CollectorRegistry = beside._registry if beside else CollectorRegistry()
        self._families: dict[str, Any] = beside._families if beside else {}
        self._told: _Told = beside._told if beside else _Told()
        self._told.models.append((model, num_restarts, state))
        if not self._are_shared and beside is None:
            ProcessCollector(registry=self._registry)
            self._registry.register(self._told)
        self._define_request_metrics()
        self._define_engine_metrics()

    def _define_request_metrics(self) -> None:
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", _seconds(0.001, 300)
        )
        self._token_gap = self._histogram(
            "inter_token_latency_seconds", "Between two successive outputs of a request", _seconds(0.001, 60)
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end", _seconds(0.001, 1000)
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "From a request's arrival to its first step", _seconds(0.001, 300)
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "From a request's first step to its first token", _seconds(0.001, 300)
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From a request's first token to its last", _seconds(0.001, 1000)
        )
        self._time_per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Of a request: seconds for each token behind the first",
            _seconds(0.001, 10),
        )
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt", _TOKEN_BUCKETS)
        self._text_sizes = self._histogram("request_generation_tokens", "Generated tokens of a request", _TOKEN_BUCKETS)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted calls")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens")
        self._ignored = self._counter(
            "requests_with_ignored_fields", "Requests with unknown fields, which were ignored"
        )
        rejected = self._counter("requests_rejected", "Refused requests, by reason", ["reason"])
        self._rejected = {reason: rejected.labels(reason) for reason in sorted(rejections())}
        self._tenant_requests = self._counter("tenant_requests", "Requests admitted, by tenant", ["tenant"])
        self._tenant_tokens = self._counter("tenant_tokens", "Tokens of admitted requests", ["tenant", "kind"])
        self._adapter_requests = self._counter("adapter_requests", "Requests admitted, by adapter", ["adapter"])
        self._adapter_tokens = self._counter("adapter_tokens", "Tokens of admitted requests", ["adapter", "kind"])
        finished = self._counter("request_success", "Requests that ended, by reason", ["finished_reason"])
        self._finished = {reason: finished.labels(reason.value) for reason in FinishReason}

    def _define_engine_metrics(self) -> None:
        self._running = self._gauge("num_requests_running", "Requests in the batch")
        self._waiting = self._gauge("num_requests_waiting", "Requests waiting for their first step, or to be resumed")
        self._kv_usage = self._gauge("kv_cache_usage_ratio", "Share of KV blocks held by running requests, 0 to 1")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache")
        tiers = self._counter("prefix_cache_tier_hits", "Prompt tokens found in the prefix cache, by memory", ["tier"])
        self._tier_hits = {tier: tiers.labels(tier) for tier in ("device", "host")}
        copied = self._counter("kv_blocks_copied", "KV blocks copied to host memory and back", ["direction"])
        self._copied = {direction: copied.labels(direction) for direction in ("out", "in")}
        self._retained = self._gauge(
            "kv_cache_retained_ratio", "Share of KV blocks that requests asked to keep, 0 to 1"
        )
        self._preemptions = self._counter("num_preemptions", "Number of times that a request was preempted")
        kinds = {
            "drafts": "Number of times that a request had drafts of tokens in a step, by what proposed them",
            "draft_tokens": "Tokens of drafts, by what proposed them",
            "accepted_tokens": "Tokens of drafts that were right, by what proposed them",
        }
        self._drafts = {
            kind: self._counter(f"spec_decode_num_{kind}", text, ["proposer"]).labels(self._proposer)
            for kind, text in kinds.items()
        }
        self._step_tokens = self._histogram("iteration_tokens", "Tokens computed in a step", _TOKEN_BUCKETS)
        self._step_seconds = self._histogram("step_duration_seconds", "Duration of a step", _seconds(0.0005, 10))
        self._startup = self._gauge("startup_seconds", "Duration of each phase of the engine's start", ["phase"])
        self._info = self._gauge("info", "1, with what is served as labels", ["model", "version"])

    # ------------------------------------------------------------------ records

    def record_step(self, stats: EngineStats) -> None:
        """Record a step of the engine."""
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._kv_usage.set(stats.kv_cache_usage)
        self._queries.inc(stats.prefix_cache_queries)
        self._hits.inc(stats.prefix_cache_hits)
        self._tier_hits["device"].inc(stats.prefix_cache_hits - stats.host_cache_hits)
        self._tier_hits["host"].inc(stats.host_cache_hits)
        self._copied["out"].inc(stats.num_blocks_out)
        self._copied["in"].inc(stats.num_blocks_in)
        self._retained.set(stats.kv_cache_retained)
        self._preemptions.inc(stats.num_preemptions)
        self._drafts["drafts"].inc(stats.num_drafted_steps)
        self._drafts["draft_tokens"].inc(stats.num_drafted_tokens)
        self._drafts["accepted_tokens"].inc(stats.num_accepted_tokens)
        if stats.step_tokens:
            self._step_tokens.observe(stats.step_tokens)
            self._step_seconds.observe(stats.step_seconds)

    def record_model(self, name: str) -> None:
        """Record the name of the served model, and the version of what serves it."""
        self._info.labels(name, __version__).set(1)

    def record_startup(self, seconds: Mapping[str, float]) -> None:
        """Record the duration of each phase of the engine's start."""
        for phase, duration in seconds.items():
            self._startup.labels(phase).set(duration)

    def record_admitted(self, num_prompt_tokens: int) -> None:
        """Record a prompt that was handed to the engine. A prompt with several choices counts once."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_sizes.observe(num_prompt_tokens)

    def record_rejected(self, reason: str) -> None:
        """Record a request that was refused, or did not end in time."""
        self._rejected[reason].inc()

    def record_ignored_fields(self) -> None:
        """Record a request that had unknown fields, which were ignored."""
        self._ignored.inc()

    def record_tenant_request(self, tenant: str) -> None:
        """Record a tenant's admitted request. Tenants are named as in the file of keys."""
        self._tenant_requests.labels(tenant).inc()

    def record_tenant_tokens(self, tenant: str, kind: Literal["prompt", "generation"], count: int) -> None:
        """Record tokens that were computed for a tenant."""
        self._tenant_tokens.labels(tenant, kind).inc(count)

    def record_adapter_request(self, adapter: str) -> None:
        """Record an admitted call that has an adapter."""
        self._adapter_requests.labels(adapter).inc()

    def record_adapter_tokens(self, adapter: str, kind: Literal["prompt", "generation"], count: int) -> None:
        """Record tokens that were computed with an adapter."""
        self._adapter_tokens.labels(adapter, kind).inc(count)

    def record_first_token(self, seconds: float, num_tokens: int) -> None:
        """Record a request's first output, `seconds` after its arrival."""
        self._first_token.observe(seconds)
        self._generation_tokens.inc(num_tokens)

    def record_token_gap(self, seconds: float, num_tokens: int) -> None:
        """Record a further output, `seconds` after the one before."""
        self._token_gap.observe(seconds)
        self._generation_tokens.inc(num_tokens)

    def record_text(self, num_tokens: int, seconds: float) -> None:
        """Record a text that has ended: its tokens, and the time from the first to the last of them."""
        self._text_sizes.observe(num_tokens)
        if num_tokens > 1:
            self._time_per_token.observe(seconds / (num_tokens - 1))

    def record_finished(self, reason: FinishReason, e2e_seconds: float, timing: RequestTiming | None) -> None:
        """Record the end of a request. `timing` is the engine's, or None if the engine did not see the end."""
        self._finished[reason].inc()
        self._e2e.observe(e2e_seconds)
        if timing is None or not timing.scheduled_at:
            return
        self._queue.observe(timing.scheduled_at - timing.arrived_at)
        if timing.first_token_at:
            self._prefill.observe(timing.first_token_at - timing.scheduled_at)
            finished_at = timing.finished_at or timing.arrived_at + e2e_seconds
            self._decode.observe(finished_at - timing.first_token_at)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format; see CONTENT_TYPE."""
        if not self._are_shared:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        everybody.register(self._told)
        return generate_latest(everybody)

    # ------------------------------------------------------------------ definitions

    def _histogram(self, name: str, text: str, buckets: list[float]) -> Histogram:
        metric: Histogram = self._of_model(Histogram, name, text, [], buckets=buckets)
        return metric

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        metric: Counter = self._of_model(Counter, name, text, labels or [])
        return metric

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        # The latest value of any process counts: gauges are the engine's, which reports them to one process.
        mode: Literal["mostrecent", "all"] = "mostrecent" if self._are_shared else "all"
        metric: Gauge = self._of_model(Gauge, name, text, labels or [], multiprocess_mode=mode)
        return metric

    def _of_model(self, kind: Any, name: str, text: str, labels: list[str], **options: Any) -> Any:
        """A metric; of one of several models with its name as the first label, which callers need not know of."""
        is_labelled = self._model is not None and "model" not in labels
        names = ["model", *labels] if is_labelled else labels
        if name not in self._families:
            self._families[name] = kind(name, text, names, namespace=_PREFIX, registry=self._registry, **options)
        family = self._families[name]
        if not is_labelled:
            return family
        return _OfModel(family, self._model) if labels else family.labels(self._model)


class _OfModel:
    """A metric whose first label is given."""

    def __init__(self, family: Any, model: str | None) -> None:
        self._family = family
        self._model = model

    def labels(self, *values: str) -> Any:
        """As of a metric."""
        return self._family.labels(self._model, *values)


class _Told(Collector):
    """Restarts of the engine and states of the model. They are asked for, because no API worker counts them."""

    def __init__(self) -> None:
        self.models: list[tuple[str | None, Callable[[], int], Callable[[], ModelState]]] = []
        """Name, of which a single model has none, number of restarts, and state."""

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        names = ["model"] if self.models[0][0] else []
        restarts = CounterMetricFamily(
            f"{_PREFIX}_engine_restarts", "Number of engines that replaced one that died", labels=names
        )
        states = GaugeMetricFamily(
            f"{_PREFIX}_model_state", "1 for the state that the model is in, else 0", labels=[*names, "state"]
        )
        for model, count, state in self.models:
            label = [model] if model else []
            restarts.add_metric(label, count())
            now = state()
            for each in get_args(ModelState):
                states.add_metric([*label, each], each == now)
        yield from (restarts, states)
