"""What low-rank adapters add to the outputs of a linear layer, token by token.

A token's result depends on nothing but the token, so it is the same in a prompt, in a decode, alone and in a crowd.
"""

import numpy as np
from torch import Tensor

from ..adapters import Adapters
from .kernel import constant, kernel
from .numerics import from_float, inline, to_float

_WORTH_A_THREAD = 2**18
"""How many products there are when several threads are faster than one."""


@inline
def _dot(a, x):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += to_float(a[i]) * x[i]
    return total


@inline
def _add_two(sums, first, b_first, second, b_second):  # type: ignore[no-untyped-def]
    for i in range(sums.shape[0]):
        sums[i] += first * to_float(b_first[i]) + second * to_float(b_second[i])


@kernel
def _add(begin, end, x, slots, ranks, a, b, ends, out):  # type: ignore[no-untyped-def]
    """Its tasks are tokens. Loops run over slices: Numba makes vector instructions of these only."""
    most = a.shape[1] // ends.shape[0]
    inputs, sums = np.empty(x.shape[1], np.float32), np.empty(out.shape[1], np.float32)
    for row in range(begin, end):
        slot = slots[row]
        if slot < 0 or ranks[slot] == 0:
            continue
        of_row, result, of_slot = x[row], out[row], a[slot]
        for i in range(inputs.shape[0]):
            inputs[i] = to_float(of_row[i])
        sums[:] = np.float32(0)
        first = 0
        for part in range(ends.shape[0]):
            last = ends[part]
            for r in range(0, ranks[slot], 2):
                factor, other = _dot(of_slot[part * most + r], inputs), np.float32(0)
                if r + 1 < most:
                    other = _dot(of_slot[part * most + r + 1], inputs)
                next_r = min(r + 1, most - 1)
                _add_two(sums[first:last], factor, b[slot, r, first:last], other, b[slot, next_r, first:last])
            first = last
        for n in range(result.shape[0]):
            result[n] = from_float(to_float(result[n]) + sums[n], result)


def add(x: Tensor, adapters: Adapters, slots: Tensor, out: Tensor) -> None:
    """See `app.kernels.ops.add_adapters`, for x (tokens, inputs) and out (tokens, outputs)."""
    work = len(x) * adapters.rank * (len(adapters.sizes) * x.shape[1] + out.shape[1])
    matrices = (adapters.ranks, adapters.a, adapters.b, adapters.ends)
    _add(len(x), work >= _WORTH_A_THREAD, x.contiguous(), slots, *map(constant, matrices), out)
