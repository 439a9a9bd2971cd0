"""The operations between the large products of a decoder layer, each in one pass over its input."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kv import ROUNDED_DTYPES, LayerKV
from ..rows import Rows
from .float8 import blocks_of, empty_rows, round_rows, store_rounded
from .launch import OVERLAPPING_ROWS, launch, wait_for_input


@triton.jit
def _rms_norm(
    x, residual, weight, out, scales, ROWS, eps, offset,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, GROUPS: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """One row of SIZE numbers. With ADDS, it is x plus residual, and the sum is written to residual.

    The result is rounded to FP8 in GROUPS groups, if they are any.
    """
    row = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, BLOCK)
    mask = at < SIZE
    scale = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32) + offset
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    values = tl.load(x + row + at, mask=mask, other=0.0)
    if ADDS:
        added = values.to(tl.float32) + tl.load(residual + row + at, mask=mask, other=0.0).to(tl.float32)
        values = added.to(x.dtype.element_ty)
        tl.store(residual + row + at, values, mask=mask)
    values = values.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    result = (values * factor * scale).to(x.dtype.element_ty)
    if GROUPS == 0:
        tl.store(out + row + at, result, mask=mask)
    else:
        store_rounded(result.to(tl.float32), out, scales, row // SIZE, ROWS, SIZE, 0, GROUPS)


def rms_norm(
    x: Tensor, weight: Tensor, offset: float, eps: float, residual: Tensor | None = None, group: int | None = None
) -> Tensor | Rows:
    """See `app.kernels.ops.rms_norm`."""
    x = x.contiguous()
    size = x.shape[-1]
    rows, block = x.numel() // size, triton.next_power_of_2(size)
    out = Rows(torch.empty_like(x), x, x.dtype) if group is None else empty_rows(rows, size, group, x)
    launch(
        _rms_norm, (rows,),
        x, x if residual is None else residual, weight, out.values, out.scales, rows, eps, offset,
        SIZE=size, BLOCK=block, ADDS=residual is not None, GROUPS=blocks_of(size, group, block)[1] if group else 0,
        overlaps=rows <= OVERLAPPING_ROWS, num_warps=min(8, max(1, block // 512)),
    )  # fmt: skip
    return out.values if group is None else out


@triton.jit
def _gated_rms_norm(
    x, gate, weight, out, ROWS, gate_stride, eps,
    SIZE: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
    SILU: tl.constexpr, GATES_FIRST: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """AT_ONCE rows of SIZE numbers, of which GROUPS follow each other with weights of their own.

    HEADS rows of the gate follow each other, and then the next begin a stride from these.
    """
    row = (tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE))[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    mask = (row < ROWS) & (at < SIZE)
    scale = tl.load(weight + row % GROUPS * SIZE + at, mask=mask, other=0.0).to(tl.float32)
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    place = row.to(tl.int64) * SIZE + at
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    gate_place = (row // HEADS).to(tl.int64) * gate_stride + row % HEADS * SIZE + at
    gates = tl.load(gate + gate_place, mask=mask, other=0.0).to(tl.float32)
    factor = tl.sigmoid(gates)
    if SILU:
        factor = gates * factor
    if GATES_FIRST:
        values = values * factor
    values = values * tl.rsqrt(tl.sum(values * values, axis=1)[:, None] / SIZE + eps) * scale
    if not GATES_FIRST:
        values = values * factor
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group: int, activation: str, gates_first: bool
) -> Tensor:
    """See `app.kernels.ops.gated_rms_norm`."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    if not (gate.dim() == 3 and gate.stride(2) == 1 and gate.stride(1) == gate.shape[2]):
        gate = gate.contiguous().view(-1, 1, gate.shape[-1])
    rows, block = x.numel() // group, triton.next_power_of_2(group)
    at_once = max(1, 512 // block)
    programs = triton.cdiv(rows, at_once)
    launch(
        _gated_rms_norm, (programs,),
        x, gate, weight, out, rows, gate.stride(0), eps, SIZE=group, GROUPS=len(weight) // group,
        HEADS=rows // len(gate), BLOCK=block, AT_ONCE=at_once, SILU=activation == "silu", GATES_FIRST=gates_first,
        overlaps=programs <= OVERLAPPING_ROWS, num_warps=min(8, max(1, block * at_once // 512)),
    )  # fmt: skip
    return out


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _gated(
    gate_up, out, scales, ROWS,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, GROUPS: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """BLOCK numbers of one row, rounded to FP8 in GROUPS groups, if they are any."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:
        gate = 0.5 * gate * (1 + _tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    result = (gate * up).to(gate_up.dtype.element_ty)
    if GROUPS == 0:
        tl.store(out + row * SIZE + at, result, mask=mask)
    else:
        store_rounded(result.to(tl.float32), out, scales, row, ROWS, SIZE, tl.program_id(1) * BLOCK, GROUPS)


def gated(gate_up: Tensor, activation: str, group: int | None = None) -> Tensor | Rows:
    """See `app.kernels.ops.gated`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    if group is None:  # there are no scales then, but the kernel has a place for them
        out = Rows(gate_up.new_empty(rows, size), gate_up, gate_up.dtype)
    else:
        out = empty_rows(rows, size, group, gate_up)
    block, groups = blocks_of(size, group, 1024) if group else (1024, 0)
    launch(
        _gated, (rows, triton.cdiv(size, block)),
        gate_up, out.values, out.scales, rows, SIZE=size, BLOCK=block, ACTIVATION=activation, GROUPS=groups,
        overlaps=rows <= OVERLAPPING_ROWS, num_warps=min(16, max(4, block // 1024)),
    )  # fmt: skip
    return out.values if group is None else out


@triton.jit
def _clamped(gate_up, out, gain, limit, SIZE, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr = False):
    """BLOCK numbers of one row."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    both = tl.arange(0, 2 * BLOCK) + tl.program_id(1) * 2 * BLOCK
    pairs = tl.load(gate_up + row * 2 * SIZE + both, mask=both < 2 * SIZE, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(pairs, [BLOCK, 2]))
    gate, up = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit)
    result = gate * tl.sigmoid(gain * gate) * (up + 1)
    tl.store(out + row * SIZE + at, result.to(out.dtype.element_ty), mask=at < SIZE)


def clamped(gate_up: Tensor, gain: float, limit: float) -> Tensor:
    """See `app.kernels.ops.clamped`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    launch(
        _clamped, (rows, triton.cdiv(size, 1024)), gate_up.contiguous(), out, gain, limit, size, BLOCK=1024,
        overlaps=rows <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _prepare_heads(
    qkv, cos, sin, q_weight, k_weight, q_out, k_cache, v_cache, k_scales, v_scales, slots, eps, offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
    ROTARY: tl.constexpr, BLOCK_SIZE: tl.constexpr, NORMS: tl.constexpr, SCALED: tl.constexpr,
    OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """AT_ONCE heads of one token. The heads of queries come first, then those of keys, then those of values."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    mask = (head < HEADS + 2 * KV_HEADS) & (at < DIM)
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    x = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    raw = tl.load(x + at, mask=mask, other=0.0)
    values = raw.to(tl.float32)
    # Each number is rotated together with the one that is half the rotated dimensions away.
    is_first, turns = at < ROTARY // 2, at < ROTARY
    other = tl.where(is_first, at + ROTARY // 2, tl.where(turns, at - ROTARY // 2, at))
    if NORMS:
        factor = tl.rsqrt(tl.sum(values * values, axis=1) / DIM + eps)[:, None]
        scale = tl.where(is_query, _scale(q_weight, at, DIM, offset), _scale(k_weight, at, DIM, offset))
        # Rounded here because models are trained so.
        values = (values * factor * scale).to(q_out.dtype.element_ty).to(tl.float32)
    if ROTARY > 0:
        partners = tl.load(x + other, mask=mask & ~is_value, other=0.0).to(tl.float32)
        if NORMS:
            scale = tl.where(is_query, _scale(q_weight, other, DIM, offset), _scale(k_weight, other, DIM, offset))
            partners = (partners * factor * scale).to(q_out.dtype.element_ty).to(tl.float32)
        c = tl.load(cos + token * ROTARY + at, mask=turns, other=1.0).to(tl.float32)
        s = tl.load(sin + token * ROTARY + at, mask=turns, other=0.0).to(tl.float32)
        values = values * c + tl.where(is_first, -partners, partners) * s
    result = tl.where(is_value, raw, values.to(q_out.dtype.element_ty))
    tl.store(q_out + (token * HEADS + head) * DIM + at, result, mask=mask & is_query)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        kv_head = (head - HEADS) % KV_HEADS
        place = (slot // BLOCK_SIZE * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
        if SCALED:
            kept, of_heads = round_rows(result.to(tl.float32), k_cache.dtype.element_ty)
            tl.store(k_scales + place, of_heads, mask=~is_query & ~is_value)
            tl.store(v_scales + place, of_heads, mask=is_value & (head < HEADS + 2 * KV_HEADS))
        else:
            kept = result
        tl.store(k_cache + place * DIM + at, kept, mask=mask & ~is_query & ~is_value)
        tl.store(v_cache + place * DIM + at, kept, mask=mask & is_value)


@triton.jit
def _scale(weight, at, DIM: tl.constexpr, offset):
    return tl.load(weight + at, mask=at < DIM, other=0.0).to(tl.float32) + offset


def rotate_and_store(
    qkv: Tensor,
    num_heads: int,
    rope: tuple[Tensor, Tensor] | None,
    norms: tuple[Tensor, Tensor, float, float] | None,
    kv: LayerKV,
    slots: Tensor,
) -> Tensor:
    """Norm and rotate queries and keys, write K and V to their slots, and return the queries.

    qkv: (tokens, heads + 2 * kv_heads, head_dim); rope: cosine and sine, each (tokens, rotary_dim); norms: the weights
    of queries and keys, each (head_dim,), offset and eps; kv: see `app.kernels.gpu.paged_attention`; slots:
    (tokens,), -1 for a token whose K and V go nowhere.
    """
    tokens, heads, dim = qkv.shape
    out = qkv.new_empty(tokens, num_heads, dim)
    cos, sin = rope if rope else (qkv, qkv)
    q_weight, k_weight, offset, eps = norms if norms else (qkv, qkv, 0.0, 0.0)
    at_once = 8
    launch(
        _prepare_heads, (tokens, triton.cdiv(heads, at_once)),
        qkv, cos, sin, q_weight, k_weight, out, *kv, slots, eps, offset,
        HEADS=num_heads, KV_HEADS=(heads - num_heads) // 2, DIM=dim, BLOCK=triton.next_power_of_2(dim),
        AT_ONCE=at_once, ROTARY=cos.shape[-1] if rope else 0, BLOCK_SIZE=kv.k.shape[2], NORMS=norms is not None,
        SCALED=kv.k.dtype in ROUNDED_DTYPES,
        overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _store(new, cache, scales, slots, stride, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
           BLOCK_SIZE: tl.constexpr, SCALED: tl.constexpr):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    at = tl.arange(0, BLOCK)[None, :]
    if slot >= 0:
        place = (slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
        values = tl.load(new + token * stride + head * DIM + at, mask=at < DIM, other=0.0)
        if SCALED:
            values, scale = round_rows(values.to(tl.float32), cache.dtype.element_ty)
            tl.store(scales + place + at, scale, mask=at == 0)
        tl.store(cache + place * DIM + at, values, mask=at < DIM)


def store(new: Tensor, cache: Tensor, scales: Tensor, slots: Tensor) -> None:
    """Write (tokens, kv_heads, head_dim) to a cache (blocks, kv_heads, block_size, head_dim); slots as above."""
    new = new if new.stride(1) == new.shape[2] and new.stride(2) == 1 else new.contiguous()
    launch(
        _store, new.shape[:2],
        new, cache, scales, slots, new.stride(0), KV_HEADS=new.shape[1], DIM=new.shape[2],
        BLOCK=triton.next_power_of_2(new.shape[2]), BLOCK_SIZE=cache.shape[2], SCALED=cache.dtype in ROUNDED_DTYPES,
        num_warps=1,
    )  # fmt: skip
