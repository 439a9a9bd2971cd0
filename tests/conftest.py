"""Where there is no GPU, its kernels run in Triton's interpreter. It has to be told before they are imported."""

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from app.kernels.ops import keep_compiled
from app.settings import cache_folder

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def compiled_kernels() -> None:
    """For tests that use the CPU's kernels without a worker: kernels that were compiled once are not compiled again."""
    keep_compiled(cache_folder(), torch.device("cpu"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What a test does to the log ends with it: the stream that it logs to is closed then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
