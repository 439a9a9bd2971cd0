"""Translates errors of torch into the exceptions that the engine knows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..core.step import WorkerLostError, WorkerOutOfMemoryError
from ..errors import is_fault

_CPU_ALLOCATOR = "can't allocate memory"
"""What torch says of the host's memory; it has no class of its own for that."""


@contextmanager
def named_faults() -> Iterator[None]:
    """Raise WorkerOutOfMemoryError and WorkerLostError for what they mean; everything else is raised as it is."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise WorkerOutOfMemoryError(str(error)) from error
    except torch.AcceleratorError as error:  # nothing can be run in this process after it
        raise WorkerLostError(str(error)) from error
    except BaseException as error:
        if _CPU_ALLOCATOR in str(error):
            raise WorkerOutOfMemoryError(str(error)) from error
        if not isinstance(error, Exception) and is_fault(error):
            raise RuntimeError("a library has failed inside") from error
        raise
