"""How kernels are started: one while the one before it ends, and compiled all together before the first is.

Between two kernels a GPU idles about a microsecond, which is as long as many of a single request's kernels take. With
CUDA's programmatic dependent launch, a kernel is started early and then waits. What no kernel writes, such as weights,
may be loaded before it waits; anything else only after. Kernels of many programs are better started alone: those of
an early start are spread unevenly over the multiprocessors (measured: attention of 32 requests takes a third longer).
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
def wait_for_input(OVERLAPS: tl.constexpr, LETS_NEXT: tl.constexpr):
    """To be called once by every program, before it reads what other kernels write, and before it writes.

    LETS_NEXT: the next kernel may start now; else when this one ends.
    """
    if OVERLAPS:
        if LETS_NEXT:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def _can_overlap() -> bool:
    """GPUs of compute capability 9.0 can."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, overlaps: bool = False, **options: Any) -> None:
    """Start a kernel, which is compiled if it has to be.

    One that `overlaps` has a parameter OVERLAPS for `wait_for_input`; so has one that starts behind such a one.
    """
    if overlaps and _can_overlap():
        options["launch_pdl"] = options["OVERLAPS"] = True
    if _compiles_only:
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """In here, kernels are not started: at the end all of them are compiled and loaded, several at a time."""
    global _compiles_only
    _compiles_only = True
    try:
        with ThreadPoolExecutor(threads) as executor:
            with triton.AsyncCompileMode(executor) as mode:
                yield
            # A kernel is loaded when it is asked for its launcher, which is a program in C that has to be compiled too.
            list(executor.map(lambda kernel: kernel.result().run, mode.future_kernels.values()))
    finally:
        _compiles_only = False
