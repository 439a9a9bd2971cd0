"""The GPU's kernels for FP8 weights, against float64 and the numbers that weights and activations stand for."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from app.kernels.gpu import float8, fused
from app.kernels.gpu.float8 import Weight
from app.kernels.rows import Rows
from tests.kernels.test_gpu import DEVICE, HALF, LARGEST, close, randn, rounding

__all__ = ["rounding"]  # a fixture that all tests use


def spread(scales: Tensor, group: int, size: int) -> Tensor:
    return scales.double().repeat_interleave(group, 1)[:, :size]


def a_weight(outputs: int, inputs: int, group: int) -> tuple[Weight, Tensor]:
    """A weight with all e4m3 has, and what it stands for."""
    values = (100 * torch.randn(outputs, inputs)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(DEVICE)
    scales = (torch.rand(outputs, -(-inputs // group)) / 100).to(DEVICE)
    return Weight(values, scales.T.contiguous(), group), values.double() * spread(scales, group, inputs)


def dense(rows: Rows, group: int) -> Tensor:
    values = rows.values.double()
    return values * spread(rows.scales.T, group, values.shape[1])


@pytest.mark.parametrize(("rows", "inputs", "group"), [(1, 64, 64), (5, 576, 576), (3, 300, 128), (4, 4096, 128)])
def test_activations_are_rounded_by_their_own_size(rows: int, inputs: int, group: int) -> None:
    x = randn(rows, inputs, dtype=HALF)
    x[0, 0] *= 1000
    x[-1, :group] = 0
    found = float8.quantize(x, group)
    scales = torch.stack([part.abs().amax(1).float().clamp(min=1e-30) / LARGEST for part in x.split(group, 1)])
    assert torch.equal(found.scales, scales)
    exact = (x.float() / spread(scales.T, group, inputs).float()).to(torch.float8_e4m3fn)
    assert torch.equal(found.values.view(torch.uint8), exact.view(torch.uint8))


SHAPES = [(64, 256, 256), (40, 80, 80), (130, 2100, 2100), (96, 384, 128), (33, 200, 128)]


@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_one_row(outputs: int, inputs: int, group: int, has_bias: bool) -> None:
    weight, stands_for = a_weight(outputs, inputs, group)
    x, bias = randn(1, inputs, dtype=HALF), randn(outputs, dtype=HALF)
    expected = x.double() @ stands_for.T + (bias.double() if has_bias else 0.0)
    for dtype in (HALF, torch.float32):
        close(float8.one_row(x, weight, bias if has_bias else None, dtype), expected)


@pytest.mark.parametrize("rows", [2, 17, 70, 130])
@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_few_rows(rows: int, outputs: int, inputs: int, group: int) -> None:
    weight, stands_for = a_weight(outputs, inputs, group)
    bias = randn(outputs, dtype=HALF)
    x = float8.quantize(randn(rows, inputs, dtype=HALF), group)
    expected = dense(x, group) @ stands_for.T + bias.double()
    # GPUs add products in FP8 with 14 bits or so.
    close(float8.few_rows(x, weight, bias, HALF), expected)
    close(float8.few_rows(x, weight, None, torch.float32), expected - bias.double(), 2000)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="cuBLAS wants a GPU")
@pytest.mark.parametrize("group", [640, 128])
def test_many_rows(group: int) -> None:
    weight, stands_for = a_weight(384, 640, group)
    if group == 128:
        scales = weight.scales[:, ::128].repeat_interleave(128, 1).contiguous()
        weight = Weight(weight.values, scales, group, float8.blocks_of_scales(scales, group))
        stands_for = weight.values.double() * spread(scales.T, group, 640)
    bias = randn(384, dtype=HALF)
    x = float8.quantize(randn(300, 640, dtype=HALF), group)
    close(float8.many_rows(x, weight, bias, HALF), dense(x, group) @ stands_for.T + bias.double())


def test_only_scales_of_whole_blocks_are_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "_has_blocks", lambda _device: True)
    blocks = torch.rand(5, 3)
    scales = blocks.repeat_interleave(128, 1)
    found = float8.blocks_of_scales(scales, 128)
    assert found is not None
    assert torch.equal(found[:, :5], blocks.T)
    assert found.shape == (3, 8)
    assert float8.blocks_of_scales(scales, 64) is None
    assert float8.blocks_of_scales(scales[:, :300], 128) is None
    scales[2, 130] += 1
    assert float8.blocks_of_scales(scales, 128) is None


@pytest.mark.parametrize(("size", "group"), [(576, 576), (300, 128), (64, 64), (4096, 4096)])
def test_what_comes_before_a_product_rounds_as_well(size: int, group: int) -> None:
    x, residual, weight = randn(5, size, dtype=HALF), randn(5, size, dtype=HALF), randn(size, dtype=HALF)
    copy = residual.clone()
    gate_up = randn(5, 2 * size, dtype=HALF)
    pairs = [
        (fused.rms_norm(x, weight, 0.0, 1e-5, group=group), fused.rms_norm(x, weight, 0.0, 1e-5)),
        (fused.rms_norm(x, weight, 0.0, 1e-5, copy, group), fused.rms_norm(x, weight, 0.0, 1e-5, residual)),
        (fused.gated(gate_up, "silu", group), fused.gated(gate_up, "silu")),
    ]
    assert torch.equal(copy, residual)
    for rounded, plain in pairs:
        assert isinstance(rounded, Rows)
        assert isinstance(plain, Tensor)
        expected = float8.quantize(plain, group)
        assert torch.equal(rounded.values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(rounded.scales, expected.scales)
