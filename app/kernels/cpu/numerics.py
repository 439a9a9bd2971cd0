"""What all CPU kernels share: how they read, write and compute numbers.

Numba has no bfloat16. Kernels get such tensors as uint16, compute in float32, and convert when they read and write: a
bfloat16 is the upper half of a float32.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that loops become vector instructions. "nnan" and "ninf" are not set: NaN has to stay NaN."""
_LOG2_E = np.float32(1.4426950408889634)


def inline(function: Callable[..., Any]) -> Any:
    """A function that is compiled into the kernels that call it, with their constants."""
    return numba.njit(inline="always", fastmath=FAST, error_model="numpy")(function)


def called(function: Callable[..., Any]) -> Any:
    """A function that kernels call: for what stands in one in several places, since it is compiled once for all."""
    return numba.njit(fastmath=FAST, error_model="numpy")(function)


def to_float(_number: Any) -> np.float32:
    """A number of an array as float32."""
    raise NotImplementedError("for kernels only")


def of_half(_number: Any) -> np.float32:
    """The same of an array that has float32, or float16 as uint16."""
    raise NotImplementedError("for kernels only")


def from_float(_number: np.float32, _like: Any) -> Any:
    """A float32 as an array of `like`'s type holds it."""
    raise NotImplementedError("for kernels only")


@overload(to_float)
def _to_float(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: np.float32(number)


@overload(of_half)
def _of_half(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: _half_to_float(number)
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


def keep(_numbers: Any, _out: Any, _scales: Any, _block: int, _place: int) -> None:
    """Write the numbers of one token and head to a cache; as whole numbers of 8 bits, if that is its type.

    Their largest becomes 127, and what that stands for becomes the scale at a block and place of the head's scales.
    """
    raise NotImplementedError("for kernels only")


@overload(keep, jit_options={"fastmath": FAST, "error_model": "numpy"})
def _keep(numbers, out, scales, block, place):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if out.dtype == types.int8:
        return _keep_rounded
    return _keep_as_is


def _keep_as_is(numbers, out, scales, block, place):  # type: ignore[no-untyped-def]  # noqa: ARG001
    for i in range(out.shape[0]):
        out[i] = from_float(to_float(numbers[i]), out)


def _keep_rounded(numbers, out, scales, block, place):  # type: ignore[no-untyped-def]
    largest = np.float32(0)
    for i in range(out.shape[0]):
        largest = max(largest, abs(to_float(numbers[i])))
    inverse = np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0)
    for i in range(out.shape[0]):
        out[i] = np.int8(np.floor(to_float(numbers[i]) * inverse + np.float32(0.5)))
    scales[block, place] = largest / np.float32(127)


@inline
def _half_to_float(number):  # type: ignore[no-untyped-def]
    """Of a finite number. Its bits are those of a float32 whose exponent is too small by 112."""
    bits = np.uint32(number)
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
    return -size if bits & np.uint32(0x8000) else size


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


@inline
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e**-x), of any x."""
    small = exp(-abs(x))
    return (np.float32(1) if x >= 0 else small) / (np.float32(1) + small)
