"""What low-rank adapters add to the outputs of a linear layer, token by token."""

import numpy as np
from torch import Tensor

from ..adapters import Adapters
from .kernel import constant, kernel
from .numerics import from_float, to_float

_WORTH_A_THREAD = 2**18
"""How many products there are when several threads are faster than one."""


@kernel
def _add(begin, end, x, slots, ranks, a, b, ends, out):  # type: ignore[no-untyped-def]
    """Its tasks are tokens."""
    most = a.shape[1] // ends.shape[0]
    inputs, sums = np.empty(x.shape[1], np.float32), np.empty(out.shape[1], np.float32)
    for row in range(begin, end):
        slot = slots[row]
        if slot < 0 or ranks[slot] == 0:
            continue
        for i in range(x.shape[1]):
            inputs[i] = to_float(x[row, i])
        first = 0
        for part in range(ends.shape[0]):
            last = ends[part]
            sums[first:last] = np.float32(0)
            for r in range(ranks[slot]):
                of_a, of_b = a[slot, part * most + r], b[slot, r]
                factor = np.float32(0)
                for i in range(x.shape[1]):
                    factor += to_float(of_a[i]) * inputs[i]
                for n in range(first, last):
                    sums[n] += factor * to_float(of_b[n])
            first = last
        for n in range(out.shape[1]):
            out[row, n] = from_float(to_float(out[row, n]) + sums[n], out)


def add(x: Tensor, adapters: Adapters, slots: Tensor, out: Tensor) -> None:
    """See `app.kernels.ops.add_adapters`, for x (tokens, inputs) and out (tokens, outputs)."""
    work = len(x) * adapters.rank * (len(adapters.sizes) * x.shape[1] + out.shape[1])
    matrices = (adapters.ranks, adapters.a, adapters.b, adapters.ends)
    _add(len(x), work >= _WORTH_A_THREAD, x.contiguous(), slots, *map(constant, matrices), out)
