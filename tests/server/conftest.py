"""One server with the embedded model for all tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.server.process import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # float32, so that texts can be compared however requests are batched.
    flags = ("--dtype", "float32", "--max-model-len", "2048", "--reasoning-parser", "think", "--cpu-threads", "2")
    with running_server(*flags) as running:
        yield running
