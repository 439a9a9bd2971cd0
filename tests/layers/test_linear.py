"""Linear layers compute the same, however they keep their weights."""

import pytest
import torch

from app.layers.linear import Head, Linear, LinearMethod, MergedLinear, assign, attach
from app.layers.methods.onednn import OneDnn, has_bfloat16
from app.layers.methods.plain import PLAIN, adopt_all

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="oneDNN wants a CPU with instructions for bfloat16")
PACKED = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


def filled(layer: Linear, dtype: torch.dtype) -> Linear:
    """A layer with random weights."""
    attach(layer, lambda *_: PLAIN)
    generator = torch.Generator().manual_seed(0)
    layer.to(dtype)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def use(model: torch.nn.Module, method: LinearMethod) -> None:
    """Have filled layers multiply by a method."""
    assign(model, lambda *_: method)
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.method.finish(layer)


@pytest.mark.parametrize("dtype", PACKED, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_a_packed_layer_computes_the_same(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    layer = filled(MergedLinear(96, (64, 32, 33), bias), dtype)
    x = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.float() @ layer.weight.float().T + (layer.bias.float() if layer.bias is not None else 0.0)
    plain = layer(x)
    use(layer, OneDnn())
    assert layer.weight.numel() == 0  # not held twice
    for out in (plain, layer(x)):
        assert out.shape == expected.shape
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("method", [PLAIN, pytest.param(OneDnn(), marks=needs_bfloat16)], ids=["plain", "oneDNN"])
def test_the_largest_logit_is_not_rounded(method: LinearMethod) -> None:
    layer = filled(Head(64, 5000, tied=None), torch.bfloat16)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ layer.weight.double().T
    use(layer, method)
    logits = layer(x)
    assert logits.dtype is torch.float32
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    torch.testing.assert_close(logits.amax(-1).double(), exact.amax(-1), rtol=1e-5, atol=1e-5)


def test_layers_of_another_library_share_their_memory() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)))
    x = torch.randn(3, 8)
    expected, weight = model(x), model[0].weight
    adopt_all(model)
    assert isinstance(model[0], Linear)
    assert model[0].weight.data_ptr() == weight.data_ptr()
    assert torch.equal(model(x), expected)
    use(model, OneDnn())
    torch.testing.assert_close(model(x), expected)
    assert weight.numel() == 32  # theirs
