"""Matrix products with few rows, which are bound by memory, whose speed libraries for large products do not reach; and
products whose rows do not depend on each other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Routes
from .adapters import Shrunk, plus_expanded, plus_expanded_of_one
from .experts import block_size, most_blocks, rows_of
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

MOST_ROWS = 64
"""With more rows cuBLAS is as fast, or faster."""
_GEMV_BLOCK_K = 1024
_PROGRAMS = 132
"""A large GPU has so many multiprocessors: with as many large tiles, these are faster than small ones."""


@triton.jit
def _gemv(
    x, weight, bias, out, experts, N, K, EVERY, sums, b, slots, END_0, END_1,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_EXPERTS: tl.constexpr = False,
    COLUMNS: tl.constexpr = 0, RANK: tl.constexpr = 0, BLOCK_R: tl.constexpr = 0, SPLITS: tl.constexpr = 0,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N rows of the weight times one row of x. With HAS_EXPERTS, there are pairs, and row `pair // EVERY` is one
    pair's. With COLUMNS, what adapters add is added.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = n < N
    if HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=False)
        pair = tl.program_id(1)
        first = tl.load(experts + pair).to(tl.int64) * N
        weight += first * K
        bias += first
        x += (pair // EVERY).to(tl.int64) * K
        out += pair.to(tl.int64) * N
    place = weight + n[:, None].to(tl.int64) * K + k[None, :]
    w = tl.load(place, mask=is_row[:, None] & (k < K)[None, :], other=0.0)
    if not HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=False)
    acc = w.to(tl.float32) * tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    for start in range(BLOCK_K, K, BLOCK_K):
        is_column = start + k < K
        xs = tl.load(x + start + k, mask=is_column, other=0.0).to(tl.float32)
        w = tl.load(place + start, mask=is_row[:, None] & is_column[None, :], other=0.0)
        acc += w.to(tl.float32) * xs[None, :]
    result = tl.sum(acc, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)
    if COLUMNS > 0:
        result = plus_expanded_of_one(
            result, sums, b, slots, n, N, END_0, END_1, COLUMNS=COLUMNS, RANK=RANK, BLOCK_R=BLOCK_R, SPLITS=SPLITS
        )
    tl.store(out + n, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["M"])
def _product(
    x, weight, bias, out, counts, pairs, M, N, K, EXPERTS, EVERY, sums, b, slots, END_0, END_1,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_E: tl.constexpr = 0, COLUMNS: tl.constexpr = 0, RANK: tl.constexpr = 0, BLOCK_R: tl.constexpr = 0,
    SPLITS: tl.constexpr = 0, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N rows of the weight times BLOCK_M rows of x. The weight is the left factor, because it has more rows.

    A sum takes its products in the order of the inputs, 16 at a time, whatever the sizes of blocks are. With BLOCK_E
    there are experts, the rows of x are those of their pairs (`rows_of`), and M is the number of tokens. With COLUMNS,
    what adapters add is added.
    """
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    block = tl.program_id(0)
    first, m, to, is_token, has_rows = rows_of(block, counts, pairs, M, N, EXPERTS, EVERY, BLOCK_M, BLOCK_E)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = n < N
    weights = weight + (first + n)[:, None] * K + k[None, :]
    xs = x + m[None, :].to(tl.int64) * K + k[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, K * has_rows, BLOCK_K):
        is_column = start + k < K
        w = tl.load(weights + start, mask=is_row[:, None] & is_column[None, :], other=0.0)
        values = tl.load(xs + start, mask=is_token[None, :] & is_column[:, None], other=0.0)
        acc = tl.dot(w, values, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + first + n, mask=is_row, other=0.0).to(tl.float32)[:, None]
    if COLUMNS > 0:
        acc = plus_expanded(
            acc, sums, b, slots, m, n, M, N, END_0, END_1, COLUMNS=COLUMNS, RANK=RANK, BLOCK_R=BLOCK_R, SPLITS=SPLITS
        )
    place = to[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=is_token[None, :] & is_row[:, None])


def skinny(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, adapted: Shrunk | None = None) -> Tensor:
    """`x @ weight.T + bias` in `dtype`, for x (..., k) of at most MOST_ROWS rows and weight (n, k), not float32.

    `adapted`: what adapters add to that is made of it.
    """
    n, k = weight.shape
    out = torch.empty(*x.shape[:-1], n, dtype=dtype, device=x.device)
    if x.numel() == k:
        # Measured on an H100: a large matrix wants two warps for each row, a small one enough programs.
        rows, warps = (1, 2) if n * k > 2**23 else (2, 4)
        launch(
            _gemv, (triton.cdiv(n, rows),),
            x.contiguous(), weight, weight if bias is None else bias, out, x, n, k, 1, *_pointers(adapted, x),
            **_sizes(adapted), BLOCK_N=rows, BLOCK_K=_GEMV_BLOCK_K, HAS_BIAS=bias is not None,
            overlaps=True, num_warps=warps,
        )  # fmt: skip
        return out
    _multiply(x, weight, bias, out, adapted)
    return out


def _pointers(adapted: Shrunk | None, unused: Tensor) -> tuple[Tensor | int, ...]:
    """Arguments of the kernels for `adapted`."""
    if adapted is None:
        return unused, unused, unused, 0, 0
    return adapted.sums, adapted.adapters.b, adapted.slots, *adapted.first_ends


def _sizes(adapted: Shrunk | None) -> dict[str, int]:
    if adapted is None:
        return {"COLUMNS": 0, "RANK": 0, "BLOCK_R": 0, "SPLITS": 0}
    splits, _, columns = adapted.sums.shape
    return {"COLUMNS": columns, "RANK": adapted.adapters.rank, "BLOCK_R": adapted.block, "SPLITS": splits}


def invariant(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same for any number of rows, where a row's result depends on nothing but the row."""
    out = torch.empty(*x.shape[:-1], len(weight), dtype=dtype, device=x.device)
    _multiply(x, weight, bias, out)
    return out


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, adapted: Shrunk | None = None) -> None:
    """In tiles that suit the number of rows."""
    n, k = weight.shape
    rows = x.numel() // k
    block_m, block_n, block_k, warps, stages = _tile(rows, n)
    launch(
        _product, (triton.cdiv(rows, block_m), triton.cdiv(n, block_n)),
        x.contiguous(), weight, weight if bias is None else bias, out, x, x, rows, n, k, 0, 1, *_pointers(adapted, x),
        **_sizes(adapted), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, HAS_BIAS=bias is not None,
        overlaps=rows <= OVERLAPPING_ROWS, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _tile(rows: int, outputs: int) -> tuple[int, int, int, int, int]:
    """Rows, outputs and inputs that a program takes at once, its warps, and stages of its loop."""
    if rows <= MOST_ROWS:
        # Measured on an H100: there must be enough programs to keep the memory busy, and each needs many loads.
        block_n, block_k = (64, 128) if outputs >= 4096 else (16, 256)
        return max(16, triton.next_power_of_2(rows)), block_n, block_k, 4, 4
    # Measured on an H200: the largest tiles that give work to most of its multiprocessors.
    if triton.cdiv(rows, 256) * triton.cdiv(outputs, 128) >= _PROGRAMS:
        return 256, 128, 64, 8, 3
    if triton.cdiv(rows, 128) * triton.cdiv(outputs, 128) >= _PROGRAMS * 2 // 3:
        return 128, 128, 64, 8, 4
    return 128, 64, 128, 4, 3


# ---------------------------------------------------------------------- experts


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Routes, is_batch_invariant: bool = False) -> Tensor:
    """The product of each pair's row with the weight of its expert; see `app.kernels.ops.grouped`."""
    num_experts, size = len(routes.counts), weight.shape[1]
    outputs = len(weight) // num_experts
    out = x.new_empty(routes.num_pairs, outputs)
    every = routes.num_pairs // len(x)
    x, added = x.contiguous(), weight if bias is None else bias
    if len(routes.experts) == 1 and not is_batch_invariant:
        rows = 1 if size > _GEMV_BLOCK_K else 2  # measured on an H200
        launch(
            _gemv, (triton.cdiv(outputs, rows), routes.num_pairs),
            x, weight, added, out, routes.experts, outputs, size, every, *_pointers(None, x),
            BLOCK_N=rows, BLOCK_K=_GEMV_BLOCK_K, HAS_BIAS=bias is not None, HAS_EXPERTS=True,
            overlaps=True, num_warps=2,
        )  # fmt: skip
        return out
    block_m = block_size(routes, most=128)
    block_n, block_k, warps, stages = _grouped_tile(block_m, x.dtype)
    launch(
        _product, (most_blocks(routes, block_m), triton.cdiv(outputs, block_n)),
        x, weight, added, out, routes.counts, routes.pairs, len(routes.experts), outputs, size, num_experts, every,
        *_pointers(None, x), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, HAS_BIAS=bias is not None,
        BLOCK_E=triton.next_power_of_2(num_experts), overlaps=len(routes.experts) <= OVERLAPPING_ROWS,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _grouped_tile(rows: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Outputs and inputs that a program takes at once, its warps, and stages of its loop."""
    if dtype is torch.float32:
        return 64, 32, 4, 2
    return (64, 128, 4, 3) if rows <= 32 else (128, 64, 8, 3)  # measured on an H200
