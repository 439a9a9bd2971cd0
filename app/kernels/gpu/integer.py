"""Products of activations, as they are, with weights that are small whole numbers: `scale * (code - point)`.

With few rows a GPU waits for the weights' bytes, and little time is left for each code. So codes lie in memory as the
kernels want them (`pack`), and become floating-point numbers by getting the bits of an exponent put before them, as in
Marlin (Frantar et al., 2024): of a number from 2 ** n on, the last bits say how far it is from 2 ** n. What scales and
points do is done to the sums of a group's products.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Routes
from .experts import block_size, most_blocks, rows_of
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

MOST_ROWS = 256
"""With more rows it is faster to convert the weight and have cuBLAS multiply."""
_WORD = 16
"""Bits of a word."""
_HALF = 4
"""Bits of half a byte."""
_SPAN = 32
"""How many neighbouring words have codes of neighbouring inputs. No group is smaller."""
_LARGEST_POINTS = {4: 128, 8: 256}
"""By bits: of those that are kept as whole numbers. With 4 bits, 128 more than a point has to be exact in bfloat16."""
_LEAST_TILE = 64
"""Outputs that a program computes at least, for more than one row."""
_MOST_TILE_ROWS = 64
"""Rows that a program computes at most."""
_SPLITS = 4
"""Programs that share the inputs of a tile, if there are few tiles."""
_PROGRAMS = 128
"""With fewer programs, some of a large GPU's multiprocessors would have nothing to do."""


class Weight(NamedTuple):
    """`scales[i // group, o] * (codes[o, i] - points[i // group, o])`."""

    words: Tensor
    """(outputs, words) int16: the codes; see `pack_codes`."""
    factors: Tensor
    """(groups, outputs) int32, with a scale in float16 as the lower half and a point as the upper one. Where that would
    round them: (2, groups, outputs) float32, scales and points."""
    counters: Tensor
    """(_PROGRAMS,) int32: how many of the programs that share a tile are done. They are 0 between two products."""
    bits: int
    """4 or 8."""
    group: int
    """Inputs that share a scale."""
    inputs: int

    @property
    def units(self) -> int:
        """Each is _SPAN words for each output."""
        return self.words.shape[1] // _SPAN

    @property
    def places(self) -> int:
        """How many neighbouring codes of a word share a scale."""
        return min(_WORD // self.bits, self.group // _SPAN)

    @property
    def has_whole_points(self) -> bool:
        """Whether factors are int32."""
        return self.factors.dtype is torch.int32


def can_pack(inputs: int, group: int) -> bool:
    """Whether there are kernels for weights with so many inputs, and inputs that share a scale."""
    return inputs % 8 == 0 and (group == inputs or group in (_SPAN, 2 * _SPAN) or group % 128 == 0)


def pack(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Weight:
    """The weight `scales * codes + zeros`; see `Codes`."""
    inputs, num_groups = codes.shape[1], scales.shape[1]
    group = inputs // num_groups if num_groups > 1 else -(-inputs // 128) * 128
    # A group without a scale has one number, its zero.
    is_flat = scales == 0
    if is_flat.any():
        codes = codes.masked_fill(is_flat.repeat_interleave(inputs // num_groups, 1), 0)
        scales, points = torch.where(is_flat, zeros, scales), torch.where(is_flat, -1.0, -zeros / scales)
    else:
        points = -zeros / scales
    whole, halves = points.round(), scales.half()
    is_exact = torch.equal(-whole * scales, zeros) and torch.equal(halves.float(), scales)
    if is_exact and whole.min() >= 0 and whole.max() <= _LARGEST_POINTS[bits]:
        factors = halves.view(torch.int16).to(torch.int32) & 0xFFFF | whole.to(torch.int32) << _WORD
        factors = factors.T.contiguous()
    else:
        factors = torch.stack([scales.T, points.T])
    counters = torch.zeros(_PROGRAMS, dtype=torch.int32, device=codes.device)
    return Weight(pack_codes(codes, bits), factors, counters, bits, group, inputs)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (outputs, inputs) uint8 as words (outputs, n) int16.

    Of a unit, which is 32 words, word i has the codes of the inputs i, 32 + i, 64 + i, ... from the unit's first input
    on, and begins with its lowest bits. So at one place of all words are the codes of neighbouring inputs.
    """
    places = _WORD // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (_SPAN * places)))
    split = padded.unflatten(1, (-1, places, _SPAN)).movedim(2, -1)  # (outputs, units, 32, places)
    if bits == _HALF:
        split = split[..., ::2] | split[..., 1::2] << _HALF
    return split.contiguous().view(torch.int16).flatten(1)


@triton.jit
def _factors(factors, at, mask, SIZE, IS_WHOLE: tl.constexpr):
    """Scales and points, float32; SIZE: of all scales."""
    both = tl.load(factors + at, mask=mask, other=0)
    if IS_WHOLE:
        scale = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        point = (both >> 16).to(tl.float32)
    else:
        scale, point = both, tl.load(factors + SIZE + at, mask=mask, other=0.0)
    return scale, point


# ---------------------------------------------------------------------- one row

_BYTE = tl.constexpr("lop3.b32 $0, $1, 0x007F8000, 0x43800000, 0xEA;")
_UPPER = tl.constexpr("lop3.b32 $0, $1, 0x00780000, 0x41800000, 0xEA;")
_LOWER = tl.constexpr("lop3.b32 $0, $1, 0x00078000, 0x41800000, 0xEA;")


@triton.jit
def _number(
    w, SHIFT: tl.constexpr, ASM: tl.constexpr, MASK: tl.constexpr, EXPONENT: tl.constexpr, HAS_ASM: tl.constexpr
):
    """Bits of w, int32, behind those of an exponent, float32. A shift to the left brings them there.

    ASM does the same as what follows it, in one instruction where the compiler would take two.
    """
    moved = w << SHIFT if SHIFT > 0 else w >> -SHIFT
    if HAS_ASM:
        bits = tl.inline_asm_elementwise(ASM, "=r,r", [moved], dtype=tl.int32, is_pure=True, pack=1)
    else:
        bits = (moved & MASK) | EXPONENT
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _add_place(total, w, low, high, PLACE: tl.constexpr, BITS: tl.constexpr, HAS_ASM: tl.constexpr):
    """Add the products of the codes c at a place of w, which is two words, with those words' inputs.

    The numbers are 256 + c if c has 8 bits. With 4 bits one shift serves two places: at odd places they are 16 + c, at
    even ones 16 + c / 16.
    """
    SHIFT: tl.constexpr = 15 - PLACE * BITS // 8 * 8
    if BITS == 8:
        total += _number(w, SHIFT, _BYTE, 0x7F8000, 0x43800000, HAS_ASM) * low
        total += _number(w, SHIFT - 16, _BYTE, 0x7F8000, 0x43800000, HAS_ASM) * high
    elif PLACE % 2 == 1:
        total += _number(w, SHIFT, _UPPER, 0x780000, 0x41800000, HAS_ASM) * low
        total += _number(w, SHIFT - 16, _UPPER, 0x780000, 0x41800000, HAS_ASM) * high
    else:
        total += _number(w, SHIFT, _LOWER, 0x078000, 0x41800000, HAS_ASM) * low
        total += _number(w, SHIFT - 16, _LOWER, 0x078000, 0x41800000, HAS_ASM) * high
    return total


@triton.jit
def _load_pairs(x, at, K, IS_BFLOAT16: tl.constexpr):
    """Inputs 2 * at and 2 * at + 1 of x (inputs / 2,) int32, as float32."""
    pairs = tl.load(x + at, mask=at < K // 2, other=0)
    if IS_BFLOAT16:
        return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)
    low, high = (pairs & 0xFFFF).to(tl.int16), (pairs >> 16).to(tl.int16)
    return low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _one_row(
    x, words, factors, bias, out, experts, N, ALL, K, WORDS, GROUPS, EVERY,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    PLACES: tl.constexpr, IS_WHOLE: tl.constexpr, HAS_BIAS: tl.constexpr, IS_BFLOAT16: tl.constexpr,
    HAS_ASM: tl.constexpr, HAS_EXPERTS: tl.constexpr = False, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of one row. Each of BLOCK_T threads takes 16 bytes of an output's words at once.

    x and words: two as int32, and WORDS of these for each output. PLACES: of a word, whose codes share a scale. With
    HAS_EXPERTS, the row is one of a pair, `pair // EVERY`, and ALL are the outputs of all experts.
    """
    CODES: tl.constexpr = 16 // BITS  # of a word
    SPAN: tl.constexpr = 32
    PIECES: tl.constexpr = SPAN // 8  # of 16 bytes, in a unit
    if HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=True)
        mine = tl.program_id(1).to(tl.int64)
        first = tl.load(experts + mine).to(tl.int64) * N
        x += mine // EVERY * (K // 2)
        words += first * WORDS
        factors += first
        bias += first
        out += mine * N
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :, None]
    t, i = tl.arange(0, BLOCK_T)[:, None, None], tl.arange(0, 4)[None, None, :]
    at_word = words + n.to(tl.int64) * WORDS + t * 4 + i
    w = tl.load(at_word, mask=(n < N) & (t * 4 + i < WORDS), other=0)
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    if not HAS_EXPERTS:
        wait_for_input(OVERLAPS, LETS_NEXT=True)
    for start in range(0, WORDS, BLOCK_T * 4):
        following = start + BLOCK_T * 4
        next_w = tl.load(at_word + following, mask=(n < N) & (following + t * 4 + i < WORDS), other=0)
        unit = start // (4 * PIECES) + t // PIECES
        for part in tl.static_range(CODES // PLACES):
            group = tl.minimum((unit * CODES + part * PLACES) * SPAN // GROUP, GROUPS - 1)  # inputs behind K are zeros
            scale, point = _factors(factors, group * ALL + n, n < N, GROUPS * ALL, IS_WHOLE)
            odd, even = tl.zeros([BLOCK_T, BLOCK_N, 4], tl.float32), tl.zeros([BLOCK_T, BLOCK_N, 4], tl.float32)
            odd_x, even_x = tl.zeros([BLOCK_T, 1, 4], tl.float32), tl.zeros([BLOCK_T, 1, 4], tl.float32)
            for place in tl.static_range(PLACES):
                pair = (unit * CODES + part * PLACES + place) * (SPAN // 2) + t % PIECES * 4 + i
                low, high = _load_pairs(x, pair, K, IS_BFLOAT16)
                if (part * PLACES + place) % 2 == 0 and BITS == 4:
                    even = _add_place(even, w, low, high, part * PLACES + place, BITS, HAS_ASM)
                    even_x += low + high
                else:
                    odd = _add_place(odd, w, low, high, part * PLACES + place, BITS, HAS_ASM)
                    odd_x += low + high
            scale, point = tl.sum(scale, axis=2), tl.sum(point, axis=2)
            total = tl.sum(odd, axis=2) - (point + 2**BITS) * tl.sum(odd_x, axis=2)
            if BITS == 4:
                total += 16.0 * tl.sum(even, axis=2) - (point + 256.0) * tl.sum(even_x, axis=2)
            acc += scale * total
        w = next_w
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    result = tl.sum(acc, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=n < N)


def one_row(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype, routes: Routes | None = None) -> Tensor:
    """`x @ weight.T + bias` (1, outputs) in `dtype`, for x (1, inputs) in bfloat16 or float16.

    With routes, of one token, x has a row for each pair, or one for all: (pairs, outputs of an expert).
    """
    pairs, experts = (1, 1) if routes is None else (routes.num_pairs, len(routes.counts))
    outputs = len(weight.words) // experts
    out = torch.empty(pairs, outputs, dtype=dtype, device=x.device)
    words = weight.words.view(torch.int32)
    launch(
        _one_row, (triton.cdiv(outputs, 4), pairs),
        x.contiguous().view(torch.int32), words, weight.factors, x if bias is None else bias, out,
        x if routes is None else routes.experts, outputs, len(words), weight.inputs, words.shape[1],
        weight.factors.shape[-2], pairs // len(x),
        GROUP=weight.group, BITS=weight.bits, BLOCK_T=64, BLOCK_N=4,
        PLACES=weight.places, IS_WHOLE=weight.has_whole_points, HAS_BIAS=bias is not None,
        IS_BFLOAT16=x.dtype is torch.bfloat16, HAS_ASM=x.is_cuda, HAS_EXPERTS=routes is not None,
        overlaps=True, num_warps=2,
    )  # fmt: skip
    return out


# ---------------------------------------------------------------------- few rows

_SHIFTS = tl.constexpr(("0", "4", "8", "12"))
_BFLOAT16 = tl.constexpr("0x43004300, 0xEA; fma.rn.bf16x2 $0, word, one, $2; }")
_FLOAT16 = tl.constexpr("0x64006400, 0xEA; fma.rn.f16x2 $0, word, one, $2; }")


@triton.jit
def _half_bytes(words, added, INDEX: tl.constexpr, HAS_ASM: tl.constexpr):
    """4 bits of each word, plus `added`, and OFFSET of its dtype. All are whole numbers, and exact."""
    IS_BFLOAT16: tl.constexpr = added.dtype == tl.bfloat16
    if not HAS_ASM:
        code = ((words >> (4 * INDEX)) & 15).to(tl.float32)
        return (code + (128 if IS_BFLOAT16 else 1024) + added.to(tl.float32)).to(added.dtype)
    ONE: tl.constexpr = "mov.b32 one, " + ("0x3F803F80" if IS_BFLOAT16 else "0x3C003C00") + "; "
    BEGIN: tl.constexpr = "{ .reg .b32 word, one; " + ONE + "shr.b32 word, $1, " + _SHIFTS[INDEX]
    END: tl.constexpr = "; lop3.b32 word, word, 0x000F000F, " + (_BFLOAT16 if IS_BFLOAT16 else _FLOAT16)
    return tl.inline_asm_elementwise(
        BEGIN + END, "=r,r,r", [words, added], dtype=added.dtype, is_pure=True, pack=2
    )  # fmt: skip


@triton.jit
def _add_product(total, words, point, xs, INDEX: tl.constexpr, HAS_ASM: tl.constexpr):
    """Add the product of 4 bits of each word (outputs, inputs), minus points (outputs,), with xs (inputs, rows)."""
    OFFSET: tl.constexpr = 128 if xs.dtype == tl.bfloat16 else 1024
    added = tl.broadcast_to((-OFFSET - point).to(xs.dtype)[:, None], words.shape)
    return tl.dot(_half_bytes(words, added, INDEX, HAS_ASM), xs, total)


@triton.jit
def _finish(acc, bias, out, n, is_row, place, mask, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _few_rows(
    x, words, factors, bias, out, parts, counters, counts, pairs, M, N, ALL, K, UNITS, GROUPS, EXPERTS, EVERY,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, PLACES: tl.constexpr, IS_WHOLE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ASM: tl.constexpr,
    BLOCK_E: tl.constexpr = 0, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK_N outputs of BLOCK_M rows. The weight is the left factor, because it has more rows.

    SPLITS programs share the inputs of a tile. The last one that is done adds up what each has left in `parts`
    (SPLITS, M, N), in their order, so that the sum is always the same. With BLOCK_E there are experts, with ALL outputs
    together, and M tokens (`rows_of`).
    """
    CODES: tl.constexpr = 16 // BITS  # of a word
    SPAN: tl.constexpr = 32
    tile, split, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait_for_input(OVERLAPS, LETS_NEXT=False)
    top, m, to, is_token, has_rows = rows_of(block, counts, pairs, M, N, EXPERTS, EVERY, BLOCK_M, BLOCK_E)
    n, i = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, SPAN)
    is_row = n < N
    at_word = words + (top + n)[:, None] * (UNITS * SPAN) + i[None, :]
    at_x = x + m[None, :].to(tl.int64) * K + i[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for unit in range(UNITS * split // SPLITS, UNITS * (split + 1) // SPLITS * has_rows):
        w = tl.load(at_word + unit * SPAN, mask=is_row[:, None], other=0)
        for part in tl.static_range(CODES // PLACES):
            group = tl.minimum((unit * CODES + part * PLACES) * SPAN // GROUP, GROUPS - 1)
            scale, point = _factors(factors, group * ALL + top + n, is_row, GROUPS * ALL, IS_WHOLE)
            # Points that are whole numbers are subtracted from the codes, exactly; others from the sum.
            from_code = point if IS_WHOLE else tl.zeros([BLOCK_N], tl.float32)
            from_upper = tl.floor(from_code / 16.0)
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            upper, sums = total, total
            for place in tl.static_range(PLACES):
                first = (unit * CODES + part * PLACES + place) * SPAN
                xs = tl.load(at_x + first, mask=is_token[None, :] & (first + i < K)[:, None], other=0.0)
                if BITS == 4:
                    total = _add_product(total, w, from_code, xs, part * PLACES + place, HAS_ASM)
                else:
                    from_lower = from_code - 16.0 * from_upper
                    total = _add_product(total, w, from_lower, xs, (part * PLACES + place) * 2, HAS_ASM)
                    upper = _add_product(upper, w, from_upper, xs, (part * PLACES + place) * 2 + 1, HAS_ASM)
                if not IS_WHOLE:
                    sums = tl.dot(tl.full([BLOCK_N, SPAN], 1.0, xs.dtype), xs, sums)
            if BITS == 8:
                total += 16.0 * upper
            if not IS_WHOLE:
                total -= point[:, None] * sums
            acc += scale[:, None] * total
    place = to[None, :].to(tl.int64) * N + n[:, None]
    mask = is_token[None, :] & is_row[:, None]
    if SPLITS == 1:
        _finish(acc, bias + top, out, n, is_row, place, mask, HAS_BIAS)
    else:
        tl.store(parts + split * M * N + place, acc, mask=mask)
        tl.debug_barrier()
        counter = counters + block * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in tl.static_range(SPLITS):
                acc += tl.load(parts + other * M * N + place, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(counter, 0)
            _finish(acc, bias, out, n, is_row, place, mask, HAS_BIAS)


def few_rows(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` (rows, outputs) in `dtype`, for x (rows, inputs)."""
    return _multiply(x, weight, bias, dtype, _tile(len(x), len(weight.words), weight.units))


def _multiply(
    x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype, tile: tuple[int, int, int], **options: bool
) -> Tensor:
    rows, outputs = len(x), len(weight.words)
    out = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    block_m, block_n, splits = tile
    parts = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device) if splits > 1 else out
    launch(
        _few_rows, (triton.cdiv(outputs, block_n), splits, triton.cdiv(rows, block_m)),
        x.contiguous(), weight.words, weight.factors, x if bias is None else bias, out, parts, weight.counters, x, x,
        rows, outputs, outputs, weight.inputs, weight.units, weight.factors.shape[-2], 0, 1,
        GROUP=weight.group, BITS=weight.bits, BLOCK_M=block_m, BLOCK_N=block_n, SPLITS=splits, PLACES=weight.places,
        IS_WHOLE=weight.has_whole_points, HAS_BIAS=bias is not None, HAS_ASM=x.is_cuda,
        overlaps=rows <= OVERLAPPING_ROWS, num_warps=block_n // 16, num_stages=3, **options,
    )  # fmt: skip
    return out


def _tile(rows: int, outputs: int, units: int) -> tuple[int, int, int]:
    """Rows and outputs that a program computes, and programs that share the inputs of these."""
    block_m = min(_MOST_TILE_ROWS, max(16, triton.next_power_of_2(rows)))
    # Measured on an H200: the more rows, the more a wider tile gains, which reads them for more outputs.
    columns = triton.cdiv(rows, block_m)
    if block_m > 16 and triton.cdiv(outputs, 2 * _LEAST_TILE) * columns >= _PROGRAMS:
        return block_m, 2 * _LEAST_TILE, 1
    is_split = triton.cdiv(outputs, _LEAST_TILE) * columns < _PROGRAMS and units >= _SPLITS
    return block_m, _LEAST_TILE, _SPLITS if is_split else 1


# ---------------------------------------------------------------------- many rows


@triton.jit
def _dequantize(
    words, factors, out, N, K, UNITS, GROUPS,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):  # fmt: skip
    """BLOCK_U units of BLOCK_N outputs."""
    CODES: tl.constexpr = 16 // BITS  # of a word
    SPAN: tl.constexpr = 32
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None, None]
    unit = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)[None, :, None]
    i = tl.arange(0, SPAN)[None, None, :]
    is_unit = (n < N) & (unit < UNITS)
    w = tl.load(words + (n.to(tl.int64) * UNITS + unit) * SPAN + i, mask=is_unit, other=0).to(tl.int32)
    for place in tl.static_range(CODES):
        first = (unit * CODES + place) * SPAN
        group = tl.minimum(first // GROUP, GROUPS - 1)
        scale, point = _factors(factors, group * N + n, is_unit, GROUPS * N, IS_WHOLE)
        code = ((w >> (BITS * place)) & (2**BITS - 1)).to(tl.float32)
        number = (scale * (code - point)).to(out.dtype.element_ty)
        tl.store(out + n.to(tl.int64) * K + first + i, number, mask=is_unit & (first + i < K))


def dequantize(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as plain numbers (outputs, inputs)."""
    outputs, block_n, block_u = len(weight.words), 4, 512 // _SPAN
    out = torch.empty(outputs, weight.inputs, dtype=dtype, device=weight.words.device)
    launch(
        _dequantize, (triton.cdiv(outputs, block_n), triton.cdiv(weight.units, block_u)),
        weight.words, weight.factors, out, outputs, weight.inputs, weight.units, weight.factors.shape[-2],
        GROUP=weight.group, BITS=weight.bits, BLOCK_N=block_n, BLOCK_U=block_u,
        IS_WHOLE=weight.has_whole_points, num_warps=4,
    )  # fmt: skip
    return out


def many_rows(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` (rows, outputs) in `dtype`, for x (rows, inputs), by cuBLAS."""
    plain = dequantize(weight, x.dtype)
    if dtype is x.dtype:
        return torch.nn.functional.linear(x, plain, bias)
    out = torch.mm(x, plain.t(), out_dtype=dtype)
    return out if bias is None else out.add_(bias)


def multiply(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` (rows, outputs) in `dtype`, for x (rows, inputs) in bfloat16 or float16."""
    if len(x) == 1:
        return one_row(x, weight, bias, dtype)
    return (few_rows if len(x) <= MOST_ROWS else many_rows)(x, weight, bias, dtype)


def invariant(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same, where a row's result depends on nothing but the row: each sum takes its products in one order.

    No inputs are split among programs, and what the compiler makes of a product and a sum is not left to it, since that
    depends on the tile.
    """
    rows, outputs = len(x), len(weight.words)
    block_m, block_n, splits = _tile(rows, outputs, weight.units)
    if splits > 1:
        block_n //= 2
    return _multiply(x, weight, bias, dtype, (block_m, block_n, 1), enable_fp_fusion=False)


# ---------------------------------------------------------------------- experts


def grouped(x: Tensor, weight: Weight, bias: Tensor | None, routes: Routes, is_batch_invariant: bool = False) -> Tensor:
    """The product of each pair's row with the weight of its expert; see `app.kernels.ops.grouped`."""
    if len(routes.experts) == 1 and not is_batch_invariant:
        return one_row(x, weight, bias, x.dtype, routes)
    experts, pairs = len(routes.counts), routes.num_pairs
    outputs = len(weight.words) // experts
    out = torch.empty(pairs, outputs, dtype=x.dtype, device=x.device)
    block_m, block_n = block_size(routes, _MOST_TILE_ROWS), _LEAST_TILE
    options = {"enable_fp_fusion": False} if is_batch_invariant else {}
    launch(
        _few_rows, (triton.cdiv(outputs, block_n), 1, most_blocks(routes, block_m)),
        x.contiguous(), weight.words, weight.factors, x if bias is None else bias, out, out, weight.counters,
        routes.counts, routes.pairs, len(routes.experts), outputs, len(weight.words), weight.inputs, weight.units,
        weight.factors.shape[-2], experts, pairs // len(x),
        GROUP=weight.group, BITS=weight.bits, BLOCK_M=block_m, BLOCK_N=block_n, SPLITS=1, PLACES=weight.places,
        IS_WHOLE=weight.has_whole_points, HAS_BIAS=bias is not None, HAS_ASM=x.is_cuda,
        BLOCK_E=triton.next_power_of_2(experts), overlaps=len(routes.experts) <= OVERLAPPING_ROWS,
        num_warps=4, num_stages=3, **options,
    )  # fmt: skip
    return out
