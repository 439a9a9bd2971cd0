"""Paceline as a Ray Serve application; serve.yaml beside this says how many replicas there are and what each has.

A replica is the ASGI application of `app.main`, which starts an engine beside it. Ray routes, scales, replaces, drains.
"""

import random
from collections.abc import Iterable

from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.metrics import Gauge
from ray.serve.request_router import PendingRequest, RunningReplica

from app.api.service import Service
from app.main import make_app


class ConversationRouter(ConsistentHashRouter):
    """A conversation stays with its replica, where its prefix is cached; the rest goes to the less busy one of two."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, those of one list before those of the next."""
        if pending_request is None or pending_request.metadata.session_id:
            return await super().choose_replicas(candidate_replicas, pending_request)
        pending_request.routing_context.should_backoff = True  # while all of them are full
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


class Paceline:
    """One replica."""

    app: FastAPI
    """What `make_app` has made in the replica; from Ray."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    async def check_health(self) -> None:
        """Ray asks every `health_check_period_s`, and replaces a replica that raises; figures go out in that rhythm."""
        service: Service = self.app.state.service
        if service.engine.failure is not None:
            raise RuntimeError(service.engine.failure)
        self._publish(text_string_to_metric_families(service.metrics.render().decode()))

    def _publish(self, metrics: Iterable[Metric]) -> None:
        """Pass all figures on to Ray, which every node exports for Prometheus, with the replica's name.

        As gauges, even counters and the buckets of histograms: Ray's own kinds can only be counted up by what is new.
        """
        for sample in (sample for metric in metrics for sample in metric.samples):
            if sample.name not in self._gauges:
                self._gauges[sample.name] = Gauge(sample.name, tag_keys=tuple(sample.labels))
            self._gauges[sample.name].set(sample.value, tags=sample.labels)


app = serve.deployment(
    serve.ingress(make_app)(Paceline),
    request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
).bind()
