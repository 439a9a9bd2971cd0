"""CPU kernels against plain torch in float64, with sizes for one thread and for several."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels import ops
from app.kernels.cpu import fused
from app.kernels.kv import LayerKV

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Relative to the largest number: a few roundings in float32, one in bfloat16."""


def close(actual: Tensor, expected: Tensor) -> None:
    error = (actual.double() - expected).abs().max()
    assert error <= TOLERANCE[actual.dtype] * expected.abs().max() + 1e-30, error


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("shape", [(1, 7), (3, 4, 64), (200, 576)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(shape: tuple[int, ...], offset: float, dtype: torch.dtype) -> None:
    x, weight = (5 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    expected = F.rms_norm(x.double(), weight.shape, weight.double() + offset, 1e-5)
    close(ops.rms_norm(x, weight, offset, 1e-5), expected)
    residual = torch.randn(shape).to(dtype)
    total = residual + x
    expected = F.rms_norm(total.double(), weight.shape, weight.double() + offset, 1e-5)
    close(ops.rms_norm(x, weight, offset, 1e-5, residual), expected)
    assert torch.equal(residual, total)


@pytest.mark.parametrize("gates_first", [False, True])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("tokens", [1, 200])
def test_gated_rms_norm(tokens: int, activation: str, gates_first: bool, dtype: torch.dtype) -> None:
    """On two groups of 48 numbers."""
    x, weight = torch.randn(tokens, 2, 96).to(dtype), torch.randn(96).to(dtype)
    gate = (5 * torch.randn(tokens, 4, 96)).to(dtype)[:, 1:3]  # part of longer rows
    factor = F.silu(gate.double()) if activation == "silu" else gate.double().sigmoid()
    values = (x.double() * factor if gates_first else x.double()).unflatten(-1, (2, 48))
    expected = (values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight.double()
    expected = expected if gates_first else expected * factor
    for rows, gates in ((x, gate), (x.flatten(0, 1), gate.flatten(0, 1))):
        found = ops.gated_rms_norm(rows, gates, weight, 1e-5, 48, activation, gates_first)
        close(found, expected.view_as(found))


@pytest.mark.parametrize("shape", [(1, 2), (5, 96), (100, 1024)])
def test_silu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = (20 * torch.randn(shape)).to(dtype)
    gate_up[0, 0] = -200.0  # exp of it is no float32
    gate, up = gate_up.double().chunk(2, dim=-1)
    close(ops.gated(gate_up, "silu"), F.silu(gate) * up)


def test_the_largest_logits_are_as_exact_as_in_float32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(5000, 64).bfloat16()
    exact = x.double() @ weight.double().T
    rounded = (x.float() @ weight.float().T).bfloat16()
    assert (rounded.argmax(-1) != exact.argmax(-1)).any()  # what this is for
    refined = ops.refine_largest(rounded, x, weight)
    assert torch.equal(refined.argmax(-1), exact.argmax(-1))
    close(refined.amax(-1), exact.amax(-1))
    assert (refined - exact).abs().max() <= (rounded.double() - exact).abs().max()


@pytest.mark.parametrize("rotary_dim", [64, 24])
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_rotate_part_of_a_wider_row(tokens: int, rotary_dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, 12, 64).to(dtype)[:, 3:11]
    angles = torch.randn(tokens, rotary_dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x[..., :rotary_dim].double().chunk(2, dim=-1)
    turned = x[..., :rotary_dim].double() * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    close(ops.rotate(x, cos, sin), torch.cat((turned, x[..., rotary_dim:].double()), dim=-1))


def test_numbers_are_rounded_to_bfloat16_as_torch_does() -> None:
    x = torch.randn(1, 4096)
    x[0, :4] = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3.0e38])  # ties, and near the largest
    cos, sin = torch.ones(1, 4096), torch.zeros(1, 4096)
    as_bfloat16 = ops.rotate(x[None].to(torch.bfloat16), cos.to(torch.bfloat16), sin.to(torch.bfloat16))
    assert torch.equal(as_bfloat16[0], x.to(torch.bfloat16))
    halves = torch.full((1, 4096), 0.5)
    expected = (x.to(torch.bfloat16).float() * 0.5).to(torch.bfloat16)
    assert torch.equal(
        ops.rotate(x[None].to(torch.bfloat16), halves.to(torch.bfloat16), sin.to(torch.bfloat16))[0], expected
    )


@pytest.mark.parametrize("rotary_dim", [64, 24, 0])
@pytest.mark.parametrize(("norms", "is_rounded"), [(False, True), (True, False)])  # each is a kernel to compile
def test_rotate_and_store(rotary_dim: int, norms: bool, is_rounded: bool, dtype: torch.dtype) -> None:
    heads, kv_heads, dim, slots, block_size = 6, 2, 64, [5, 16, 47], 16
    qkv = torch.randn(3, heads + 2 * kv_heads, dim).to(dtype)
    angles = torch.randn(3, rotary_dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    weights = torch.randn(dim).to(dtype), torch.randn(dim).to(dtype)
    k_cache = torch.zeros(kv_heads, 3, dim, block_size, dtype=torch.int8 if is_rounded else dtype)
    v_cache = torch.zeros(kv_heads, 3, block_size, dim, dtype=k_cache.dtype)
    scales = torch.full((2, kv_heads, 3 if is_rounded else 0, block_size), math.nan)
    rope, of_heads = (cos, sin) if rotary_dim else None, (*weights, 1.0, 1e-6) if norms else None
    q = fused.rotate_and_store(qkv, heads, rope, of_heads, LayerKV(k_cache, v_cache, *scales), torch.tensor(slots))
    exact_q, exact_k, v = qkv.double().split((heads, kv_heads, kv_heads), dim=1)
    if norms:
        exact_q, exact_k = (
            F.rms_norm(x, (dim,), w.double() + 1.0, 1e-6) for x, w in ((exact_q, weights[0]), (exact_k, weights[1]))
        )
    if rotary_dim:
        exact_q, exact_k = (turned(x, cos.double(), sin.double()) for x in (exact_q, exact_k))
    close(q, exact_q)
    for token, slot in enumerate(slots):
        block, place = divmod(slot, block_size)
        k_kept, v_kept = k_cache[:, block, :, place], v_cache[:, block, place]
        if is_rounded:
            for kept, scale, exact in zip((k_kept, v_kept), scales[:, :, block, place], (exact_k, v), strict=True):
                assert kept.abs().amax(1).eq(127).all()
                error = (kept.double() * scale[:, None] - exact[token]).abs()
                assert (error <= 0.501 * scale[:, None] + TOLERANCE[dtype]).all()
        else:
            close(k_kept, exact_k[token])
            assert torch.equal(v_kept.double(), v[token])


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (tokens, heads, head_dim), the first of whose dimensions are rotated by tables (tokens, rotary_dim)."""
    size = cos.shape[1]
    first, second = x[..., :size].chunk(2, dim=-1)
    rotated = x[..., :size] * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return torch.cat((rotated, x[..., size:]), dim=-1)
