"""A real Prometheus with our configuration, which scrapes two replicas."""

import math
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import web
from tests.deploy.replica import REPOSITORY, Replica
from tests.patience import wait_until
from tests.server.process import free_ports

FOLDER = REPOSITORY / "deploy" / "prometheus"

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")


class Prometheus:
    """A running Prometheus, queried through its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def is_ready(self) -> bool:
        try:
            return web.get(f"{self._url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, query: str) -> dict[str, float]:
        """The values of a query by instance, with "" for series without one."""
        answer: dict[str, Any] = web.get(f"{self._url}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        return {each["metric"].get("instance", ""): float(each["value"][1]) for each in answer["data"]["result"]}


@pytest.fixture(scope="module")
def prometheus(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our configuration, except for the replicas' addresses and shorter intervals."""
    folder = tmp_path_factory.mktemp("prometheus")
    (port,) = free_ports(1)
    configuration = (FOLDER / "prometheus.yml").read_text()
    for name, replica in zip(("paceline-1:8000", "paceline-2:8000"), replicas, strict=True):
        configuration = configuration.replace(name, f"127.0.0.1:{replica.port}")
    (folder / "prometheus.yml").write_text(configuration.replace(": 5s", ": 1s").replace(": 15s", ": 1s"))
    shutil.copy(FOLDER / "rules.yml", folder)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            wait_until(prometheus.is_ready, pause=0.2)
            yield prometheus
        finally:
            process.terminate()


@pytest.fixture
def instances(replicas: list[Replica]) -> set[str]:
    return {f"127.0.0.1:{replica.port}" for replica in replicas}


def test_both_replicas_are_scraped(prometheus: Prometheus, instances: set[str]) -> None:
    up = dict.fromkeys(instances, 1.0)
    wait_until(lambda: prometheus.values('up{job="paceline"}') == up, pause=0.2)
    num_series = prometheus.values('count by (instance) ({__name__=~"paceline_.+"})')
    assert num_series.keys() == instances
    assert min(num_series.values()) > 100
    assert prometheus.values("paceline_num_requests_waiting") == dict.fromkeys(instances, 0.0)


def test_rules_are_computed_of_what_is_scraped(prometheus: Prometheus, replicas: list[Replica]) -> None:
    def share_of_late_tokens() -> float:
        for replica in replicas:
            replica.server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
        return prometheus.values("job:ttft_slow:ratio_rate5m").get("", math.nan)

    wait_until(lambda: 0 <= share_of_late_tokens() <= 1, pause=0.2)
