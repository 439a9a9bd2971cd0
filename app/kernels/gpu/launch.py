"""How kernels are started: one while the one before it ends, and compiled all together before the first is.

Between two kernels a GPU idles a microsecond or two, which is as long as many of a decode's kernels take. With CUDA's
programmatic dependent launch, a kernel is started early and then waits. What no kernel writes, such as weights, may be
loaded before it waits; anything else only after.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

_compiles_only = False


@triton.jit
def wait_for_input(OVERLAPS: tl.constexpr):
    """To be called once by every program, before it reads what other kernels write, and before it writes."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def _overlap() -> dict[str, bool]:
    """GPUs of compute capability 9.0 can overlap."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start a kernel, which has a parameter OVERLAPS for `wait_for_input`, and is compiled if it has to be."""
    if _compiles_only:
        kernel.warmup(*args, grid=grid, **options, **_overlap())
    else:
        kernel[grid](*args, **options, **_overlap())


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """In here, kernels are not started: at the end all of them are compiled, several at a time."""
    global _compiles_only
    _compiles_only = True
    try:
        with ThreadPoolExecutor(threads) as executor, triton.AsyncCompileMode(executor):
            yield
    finally:
        _compiles_only = False
