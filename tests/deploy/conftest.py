"""Two replicas, which the tests of nginx and of Prometheus share."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deploy.replica import Replica
from tests.server.process import free_ports


@pytest.fixture(scope="package")
def replicas(tiny_model: Path) -> Iterator[list[Replica]]:
    both = [Replica(port, tiny_model) for port in free_ports(2)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, both))
        yield both
    finally:
        for replica in both:
            replica.close()
