"""Products of one row with a matrix: bound by memory, which libraries made for large products do not use fully."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_K = 1024


@triton.jit
def _gemv(
    x, weight, bias, out, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of the weight."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = n < N
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        is_column = start + k < K
        xs = tl.load(x + start + k, mask=is_column, other=0.0).to(tl.float32)
        place = n[:, None].to(tl.int64) * K + start + k[None, :]
        w = tl.load(weight + place, mask=is_row[:, None] & is_column[None, :], other=0.0)
        acc += w.to(tl.float32) * xs[None, :]
    result = tl.sum(acc, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=is_row)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` in `dtype`, for x (..., k) of one row and weight (n, k)."""
    n, k = weight.shape
    out = torch.empty(*x.shape[:-1], n, dtype=dtype, device=x.device)
    # Measured on an H100: two warps for each row of a large matrix, and enough programs for a small one.
    rows, warps = (1, 2) if n * k > 2**23 else (2, 4)
    _gemv[(triton.cdiv(n, rows),)](
        x.contiguous(), weight, weight if bias is None else bias, out,
        n, k, BLOCK_N=rows, BLOCK_K=_BLOCK_K, HAS_BIAS=bias is not None, num_warps=warps,
    )  # fmt: skip
    return out
