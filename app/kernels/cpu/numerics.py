"""What all CPU kernels share: how they are compiled, and how they read and write numbers.

Numba has no bfloat16. Kernels get such tensors as uint16, compute in float32, and convert when they read and write: a
bfloat16 is the upper half of a float32.
"""

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

_FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that loops become vector instructions. "nnan" and "ninf" are not set: NaN has to stay NaN."""
WORTH_A_THREAD = 65536
"""How many numbers an input has when several threads are faster than one."""
_LOG2_E = np.float32(1.4426950408889634)

_kernels: list[Any] = []
"""All kernels of this process."""
_are_kept = False


def keep_compiled(folder: Path) -> None:
    """Keep compiled kernels in a folder, if it can be written to, because compiling takes seconds.

    It is called before the first kernel runs. Numba's keys name the processor, so machines can share the folder.
    """
    global _are_kept
    # One pool of threads for torch, which computes with OpenMP, and Numba: two would compete for the same cores.
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # type: ignore[attr-defined]
    if not folder.is_dir():
        log.info("compiling the CPU's kernels, once: this takes some ten seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    _are_kept = True
    for compiled in _kernels:
        compiled.enable_caching()


def kernel(function: Callable[..., Any]) -> Any:
    """A kernel, compiled from a function at its first call. Its `prange` loops are divided among all threads."""
    compiled = numba.njit(parallel=True, fastmath=_FAST, nogil=True, error_model="numpy", cache=_are_kept)(function)
    _kernels.append(compiled)
    return compiled


def inline(function: Callable[..., Any]) -> Any:
    """A function that is compiled into the kernels that call it, with their constants."""
    return numba.njit(inline="always", fastmath=_FAST, error_model="numpy")(function)


def array(tensor: Tensor) -> NDArray[Any]:
    """A tensor's memory as kernels take it. For tensors with gaps between rows, a kernel is compiled a second time."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


@lru_cache(maxsize=4096)
def constant(tensor: Tensor) -> NDArray[Any]:
    """`array` for tensors that live as long as the model: weights and caches."""
    return array(tensor)


def to_float(_number: Any) -> np.float32:
    """A number of an array as float32."""
    raise NotImplementedError("for kernels only")


def from_float(_number: np.float32, _like: Any) -> Any:
    """A float32 as an array of `like`'s type holds it."""
    raise NotImplementedError("for kernels only")


@overload(to_float)
def _to_float(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: np.float32(number)


@overload(from_float)
def _from_float(number, like):  # type: ignore[no-untyped-def]  # noqa: ARG001 - Numba wants the original's names
    if like.dtype == types.uint16:
        return lambda number, like: _round_to_bfloat16(number)  # noqa: ARG005
    return lambda number, like: np.float32(number)  # noqa: ARG005


@inline
def _round_to_bfloat16(number):  # type: ignore[no-untyped-def]
    bits = np.float32(number).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@inline
def exp(x):  # type: ignore[no-untyped-def]
    """e**x to seven digits, for x <= 0. Unlike the C library's function, it can become vector instructions.

    2**whole is written into the bits of the exponent, and 2**rest, with |rest| <= 0.5, is a series of seven terms.
    """
    y = max(np.float32(x) * _LOG2_E, np.float32(-126.0))
    whole = np.floor(y + np.float32(0.5))
    z = (y - whole) * np.float32(0.6931471805599453)
    rest = np.float32(1 / 720)
    rest = rest * z + np.float32(1 / 120)
    rest = rest * z + np.float32(1 / 24)
    rest = rest * z + np.float32(1 / 6)
    rest = rest * z + np.float32(1 / 2)
    rest = rest * z + np.float32(1)
    rest = rest * z + np.float32(1)
    return rest * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
