"""One server with the embedded model for all tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.server.process import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # float32, so that texts can be compared however requests are batched.
    with running_server("--dtype", "float32", "--max-model-len", "2048", "--reasoning-parser", "think") as running:
        yield running
