import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gemv(x, weight, out, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        mask = start + k < K
        xs = tl.load(x + start + k, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weight + n[:, None].to(tl.int64) * K + start + k[None, :], mask=mask[None, :], other=0.0)
        acc += w.to(tl.float32) * xs[None, :]
    tl.store(out + n, tl.sum(acc, axis=1).to(out.dtype.element_ty))


@triton.jit
def _skinny(x, weight, out, M, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_K: tl.constexpr):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, K, BLOCK_K):
        w = tl.load(weight + n[:, None].to(tl.int64) * K + start + k[None, :])
        xs = tl.load(x + m[None, :] * K + start + k[:, None], mask=m[None, :] < M, other=0.0)
        acc = tl.dot(w, xs, acc)
    tl.store(out + m[None, :] * N + n[:, None], acc.to(out.dtype.element_ty), mask=m[None, :] < M)


def gemv(x: Tensor, weight: Tensor, out: Tensor, bn: int, bk: int, warps: int) -> None:
    n, k = weight.shape
    _gemv[(n // bn,)](x, weight, out, N=n, K=k, BLOCK_N=bn, BLOCK_K=bk, num_warps=warps)


def skinny(x: Tensor, weight: Tensor, out: Tensor, bm, bn, bk, warps, stages) -> None:
    n, k = weight.shape
    _skinny[(n // bn,)](x, weight, out, x.shape[0], N=n, K=k, BLOCK_M=bm, BLOCK_N=bn, BLOCK_K=bk, num_warps=warps, num_stages=stages)
