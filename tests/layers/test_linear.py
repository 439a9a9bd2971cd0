"""Packed weights compute what plain ones do."""

import pytest
import torch

from app.layers.linear import MergedLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_a_packed_layer_computes_the_same(tokens: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = MergedLinear(96, (64, 32, 33), bias).to(torch.bfloat16).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(tokens, 96, generator=generator).bfloat16()
    expected = x.float() @ layer.weight.float().T + (layer.bias.float() if layer.bias is not None else 0.0)
    plain = layer(x)
    layer.pack()
    assert layer.weight.numel() == 0 or layer._packed is None  # not held twice
    for out in (plain, layer(x)):
        assert out.shape == expected.shape
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.1)
