"""Products of weights in FP8 (e4m3; Micikevicius et al., 2022), by the GPU's instructions for it where rows are many.

A weight has a scale for each output and each group of inputs; the group may be all inputs. So have activations, for
each row and group. One row is bound by memory alone, and its activations stay as they are.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from ..routes import Routes
from ..rows import Rows
from .experts import block_size, most_blocks, rows_of
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

MOST_ROWS = 256
"""With more rows and one group, cuBLAS is faster."""
_PROGRAMS = 132
"""With more programs than that, and more than 32 rows, cuBLAS is faster: a large GPU has so many multiprocessors."""
_BLOCK = 128
"""Outputs and inputs of the blocks that cuBLAS knows."""
_PIECE = 1024
"""Inputs of one row that a program takes at once."""


class Weight(NamedTuple):
    """`scales[i // group, o] * values[o, i]`."""

    values: Tensor
    """(outputs, inputs) float8_e4m3fn"""
    scales: Tensor
    """(groups, outputs) float32"""
    group: int
    """Inputs that share a scale."""
    blocks: Tensor | None = None
    """(outputs / 128, groups, and some more until they are a multiple of 4) float32, where 128 outputs and 128 inputs
    share a scale."""


@triton.jit
def round_rows(numbers, dtype: tl.constexpr):
    """Numbers (rows, n) float32 in FP8, and scales (rows, 1): the largest number of a row becomes that of e4m3."""
    scale = tl.maximum(tl.max(tl.abs(numbers), axis=1), 1e-30)[:, None] / 448.0
    return (numbers / scale).to(dtype), scale


@triton.jit
def store_rounded(numbers, values, scales, row, ROWS, SIZE, first, GROUPS: tl.constexpr):
    """Round some whole groups of a row, numbers (inputs,) from input `first` on; they are 0 behind its last input."""
    BLOCK: tl.constexpr = numbers.shape[0] // GROUPS
    rounded, scale = round_rows(tl.reshape(numbers, [GROUPS, BLOCK]), values.dtype.element_ty)
    at = first + tl.arange(0, GROUPS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(values + row * SIZE + at, rounded, mask=at < SIZE)
    group = first // BLOCK + tl.arange(0, GROUPS)[:, None]
    tl.store(scales + group * ROWS + row, scale, mask=group * BLOCK < SIZE)


@triton.jit
def _quantize(
    x, values, scales, ROWS, SIZE, BLOCK: tl.constexpr, GROUPS: tl.constexpr, OVERLAPS: tl.constexpr = False
):  # fmt: skip
    """BLOCK inputs of one row, which are GROUPS groups."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    at = first + tl.arange(0, BLOCK)
    numbers = tl.load(x + row * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    store_rounded(numbers, values, scales, row, ROWS, SIZE, first, GROUPS)


def empty_rows(rows: int, size: int, group: int, like: Tensor) -> Rows:
    """Activations (rows, size) that are not computed yet."""
    values = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=like.device)
    scales = torch.empty(triton.cdiv(size, group), rows, dtype=torch.float32, device=like.device)
    return Rows(values, scales, like.dtype)


def blocks_of(size: int, group: int, most: int) -> tuple[int, int]:
    """Inputs that a program takes at once, about `most` of them, and groups that these are."""
    block = triton.next_power_of_2(group)
    groups = max(1, min(most, triton.next_power_of_2(size)) // block)
    return block * groups, groups


def quantize(x: Tensor, group: int) -> Rows:
    """Round x (rows, inputs): the largest number of a row's group becomes the largest of e4m3.

    Groups are of a power of two, or all inputs.
    """
    rows, size = x.shape
    out = empty_rows(rows, size, group, x)
    block, groups = blocks_of(size, group, 1024)
    launch(
        _quantize, (rows, triton.cdiv(size, block)),
        x.contiguous(), out.values, out.scales, rows, size,
        BLOCK=block, GROUPS=groups, overlaps=rows <= OVERLAPPING_ROWS, num_warps=min(8, max(1, block // 1024)),
    )  # fmt: skip
    return out


@triton.jit
def _to_float(numbers, IS_PACKED: tl.constexpr):
    """e4m3 as float32. IS_PACKED: four at once, for which Triton's own conversion would take three times as long."""
    if not IS_PACKED:
        return numbers.to(tl.float32)
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b16 pair<2>, half<4>;
            .reg .b32 halves<2>;
            mov.b32 {pair0, pair1}, $4;
            cvt.rn.f16x2.e4m3x2 halves0, pair0;
            cvt.rn.f16x2.e4m3x2 halves1, pair1;
            mov.b32 {half0, half1}, halves0;
            mov.b32 {half2, half3}, halves1;
            cvt.f32.f16 $0, half0;
            cvt.f32.f16 $1, half1;
            cvt.f32.f16 $2, half2;
            cvt.f32.f16 $3, half3;
        }
        """,
        "=f,=f,=f,=f,r", [numbers], dtype=tl.float32, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _one_row(
    x, weight, scales, bias, out, experts, N, ALL, K, GROUP, EVERY,
    BLOCK_N: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, IS_GROUPED: tl.constexpr,
    HAS_BIAS: tl.constexpr, IS_PACKED: tl.constexpr, HAS_EXPERTS: tl.constexpr = False, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of one row of x. Inputs are taken in pieces of BLOCK, which are groups if IS_GROUPED.

    With HAS_EXPERTS, the row is one of a pair, `pair // EVERY`, and ALL are the outputs of all experts.
    """
    if HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=False)
        pair = tl.program_id(1).to(tl.int64)
        first = tl.load(experts + pair).to(tl.int64) * N
        x += pair // EVERY * K
        weight += first * K
        scales += first
        bias += first
        out += pair * N
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None, None]
    piece, within = tl.arange(0, GROUPS)[None, :, None], tl.arange(0, BLOCK)[None, None, :]
    k = piece * GROUP + within
    is_row, is_mine = n < N, within < GROUP
    weights = weight + n.to(tl.int64) * K + k
    of_piece = scales + piece * ALL + n
    w = tl.load(weights, mask=is_row & is_mine & (k < K), other=0.0)
    if not HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=False)
    xs = tl.load(x + k, mask=is_mine & (k < K), other=0.0).to(tl.float32)
    if IS_GROUPED:
        xs *= tl.load(of_piece, mask=is_row & (piece * GROUP < K), other=0.0)
    acc = _to_float(w, IS_PACKED) * xs
    for start in range(GROUPS * GROUP, K, GROUPS * GROUP):
        is_column = is_mine & (start + k < K)
        xs = tl.load(x + start + k, mask=is_column, other=0.0).to(tl.float32)
        if IS_GROUPED:
            xs *= tl.load(of_piece + start // GROUP * ALL, mask=is_row & (start + piece * GROUP < K), other=0.0)
        acc += _to_float(tl.load(weights + start, mask=is_row & is_column, other=0.0), IS_PACKED) * xs
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < N
    result = tl.sum(tl.sum(acc, axis=2), axis=1)
    if not IS_GROUPED:
        result *= tl.load(scales + n, mask=is_row, other=0.0)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["M"])
def _few_rows(
    x, x_scales, weight, scales, bias, out, counts, pairs, M, TOKENS, N, ALL, K, EXPERTS, EVERY,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_GROUPED: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_E: tl.constexpr = 0, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of BLOCK_M of the M rows. The weight is the left factor, because it has more rows.

    IS_GROUPED: a group is BLOCK_K inputs. With BLOCK_E there are experts, with ALL outputs together (`rows_of`).
    """
    block = tl.program_id(0)
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    first, m, to, is_token, has_rows = rows_of(block, counts, pairs, TOKENS, N, EXPERTS, EVERY, BLOCK_M, BLOCK_E)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = n < N
    scales += first
    weights = weight + (first + n)[:, None] * K + k[None, :]
    xs = x + m[None, :].to(tl.int64) * K + k[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    factor = tl.load(scales + n, mask=is_row, other=0.0)
    x_factor = tl.load(x_scales + m, mask=is_token, other=0.0)
    for start in range(0, K * has_rows, BLOCK_K):
        is_column = start + k < K
        w = tl.load(weights + start, mask=is_row[:, None] & is_column[None, :], other=0.0)
        values = tl.load(xs + start, mask=is_token[None, :] & is_column[:, None], other=0.0)
        if IS_GROUPED:  # the next group's scales are on their way while this one is multiplied
            following = start + BLOCK_K
            is_next = is_row & (following + 0 * n < K)
            next_factor = tl.load(scales + following // BLOCK_K * ALL + n, mask=is_next, other=0.0)
            is_next = is_token & (following + 0 * m < K)
            next_x_factor = tl.load(x_scales + following // BLOCK_K * M + m, mask=is_next, other=0.0)
            acc += tl.dot(w, values) * (factor[:, None] * x_factor[None, :])
            factor, x_factor = next_factor, next_x_factor
        else:
            acc = tl.dot(w, values, acc)
    if not IS_GROUPED:
        acc *= factor[:, None] * x_factor[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + first + n, mask=is_row, other=0.0).to(tl.float32)[:, None]
    place = to[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=is_token[None, :] & is_row[:, None])


def one_row(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype, routes: Routes | None = None) -> Tensor:
    """`x @ weight.T + bias` (1, outputs) in `dtype`, for x (1, inputs) as it is.

    With routes, of one token, x has a row for each pair, or one for all: (pairs, outputs of an expert).
    """
    pairs, experts = (1, 1) if routes is None else (routes.num_pairs, len(routes.counts))
    of_all, size = weight.values.shape
    outputs = of_all // experts
    out = torch.empty(pairs, outputs, dtype=dtype, device=x.device)
    is_grouped = weight.group < size
    group = weight.group if is_grouped else _PIECE
    block = triton.next_power_of_2(group)
    # Measured on an H200: a small weight wants programs with more under way, a large one has enough of them.
    at_once, warps = (4, 2) if outputs <= 4096 and not is_grouped else (1, 1 + is_grouped)
    launch(
        _one_row, (triton.cdiv(outputs, at_once), pairs),
        x.contiguous(), weight.values, weight.scales, weight.values if bias is None else bias, out,
        x if routes is None else routes.experts, outputs, of_all, size, group, pairs // len(x),
        BLOCK_N=at_once, GROUPS=max(1, _PIECE // block), BLOCK=block, IS_GROUPED=is_grouped,
        HAS_BIAS=bias is not None, IS_PACKED=x.is_cuda, HAS_EXPERTS=routes is not None,
        overlaps=True, num_warps=warps,
    )  # fmt: skip
    return out


class Tile(NamedTuple):
    """What a program of `_few_rows` computes at once, and how."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def few_rows(x: Rows, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` (rows, outputs) in `dtype`. Groups are of a power of two, or all inputs."""
    return _multiply(x, weight, bias, dtype, _tile(len(x.values), weight))


def _multiply(x: Rows, weight: Weight, bias: Tensor | None, dtype: torch.dtype, tile: Tile, **options: bool) -> Tensor:
    rows, (outputs, size) = len(x.values), weight.values.shape
    out = torch.empty(rows, outputs, dtype=dtype, device=x.values.device)
    launch(
        _few_rows, (triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)),
        x.values, x.scales, weight.values, weight.scales, weight.values if bias is None else bias, out, x.scales,
        x.scales, rows, rows, outputs, outputs, size, 0, 1,
        BLOCK_M=tile.rows, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
        IS_GROUPED=weight.group < size, HAS_BIAS=bias is not None, overlaps=rows <= OVERLAPPING_ROWS,
        num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    return out


def _tile(rows: int, weight: Weight) -> Tile:
    outputs, size = weight.values.shape
    is_grouped = weight.group < size
    block_m = min(128, max(16, triton.next_power_of_2(rows)))
    # Measured on an H200: a small weight makes few programs, each of which needs many bytes under way.
    is_small = outputs <= 8192 and not is_grouped
    return Tile(block_m, 64, weight.group if is_grouped else 256, 4, 6 if block_m <= 64 and is_small else 4)


def _has_blocks(device: torch.device) -> bool:
    """Whether cuBLAS has a product for blocks, which takes compute capability 9."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def blocks_of_scales(scales: Tensor, group: int) -> Tensor | None:
    """See `Weight.blocks`; scales (groups, outputs). None if they are not of whole blocks, or the GPU takes none."""
    if group != _BLOCK or scales.shape[1] % _BLOCK or not _has_blocks(scales.device):
        return None
    blocks = scales[:, ::_BLOCK]
    if not torch.equal(blocks.repeat_interleave(_BLOCK, 1), scales):
        return None
    return torch.nn.functional.pad(blocks.T, (0, -len(scales) % 4)).contiguous()


def many_rows(x: Rows, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same by cuBLAS, for one group, or blocks; inputs and outputs are multiples of 16."""
    if weight.blocks is None:
        scales = (x.scales.t(), ScalingType.RowWise, weight.scales, ScalingType.RowWise)
    else:
        scales = (x.scales.t(), ScalingType.BlockWise1x128, weight.blocks.t(), ScalingType.BlockWise128x128)
    out = scaled_mm(x.values, weight.values.t(), *scales, output_dtype=dtype, use_fast_accum=weight.blocks is None)
    return out if bias is None else out.add_(bias)


def multiply(x: Tensor | Rows, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` (rows, outputs) in `dtype`, for x (rows, inputs)."""
    outputs, size = weight.values.shape
    if not isinstance(x, Rows):
        if len(x) == 1:
            return one_row(x, weight, bias, dtype)
        x = quantize(x, weight.group)
    rows = len(x.values)
    fits = x.values.is_cuda and dtype is torch.bfloat16 and not (outputs % 16 or size % 16)
    if weight.group == size:
        is_faster = rows > MOST_ROWS or (rows > 32 and triton.cdiv(outputs, 64) * triton.cdiv(rows, 128) > _PROGRAMS)
    else:
        is_faster = weight.blocks is not None and rows % 4 == 0 and size % _BLOCK == 0  # cuBLAS takes no others
    return (many_rows if fits and is_faster else few_rows)(x, weight, bias, dtype)


def invariant(x: Tensor | Rows, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same, where a row's result depends on nothing but the row: each sum takes its products in one order.

    Activations are rounded in any case. What the compiler makes of a product and a sum is not left to it, since that
    depends on the tile.
    """
    x = x if isinstance(x, Rows) else quantize(x, weight.group)
    rows, (outputs, size) = len(x.values), weight.values.shape
    tile = _tile(rows, weight)
    if weight.group == size and triton.cdiv(rows, 256) * triton.cdiv(outputs, 128) >= _PROGRAMS:
        tile = Tile(256, 128, 128, 8, 3)  # measured on an H200
    return _multiply(x, weight, bias, dtype, tile, enable_fp_fusion=False)


def grouped(
    x: Tensor | Rows, weight: Weight, bias: Tensor | None, routes: Routes, is_batch_invariant: bool = False
) -> Tensor:
    """The product of each pair's row with the weight of its expert; see `app.kernels.ops.grouped`.

    Activations are rounded, but for those of a token that is alone, if the product need not be batch invariant.
    """
    if not isinstance(x, Rows):
        if len(routes.experts) == 1 and not is_batch_invariant:
            return one_row(x, weight, bias, x.dtype, routes)
        x = quantize(x, weight.group)
    experts, pairs, rows = len(routes.counts), routes.num_pairs, len(x.values)
    of_all, size = weight.values.shape
    outputs, is_grouped = of_all // experts, weight.group < size
    out = torch.empty(pairs, outputs, dtype=x.dtype, device=x.values.device)
    block_m = block_size(routes, 128)
    options = {"enable_fp_fusion": False} if is_batch_invariant else {}
    launch(
        _few_rows, (most_blocks(routes, block_m), triton.cdiv(outputs, 64)),
        x.values, x.scales, weight.values, weight.scales, weight.values if bias is None else bias, out,
        routes.counts, routes.pairs, rows, len(routes.experts), outputs, of_all, size, experts, pairs // rows,
        BLOCK_M=block_m, BLOCK_N=64, BLOCK_K=weight.group if is_grouped else 256, IS_GROUPED=is_grouped,
        HAS_BIAS=bias is not None, BLOCK_E=triton.next_power_of_2(experts),
        overlaps=len(routes.experts) <= OVERLAPPING_ROWS, num_warps=4, num_stages=4, **options,
    )  # fmt: skip
    return out
