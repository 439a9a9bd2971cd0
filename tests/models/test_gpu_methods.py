"""Quantized checkpoints and rounded weights, multiplied by the GPU's kernels, here in Triton's interpreter."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from app.checkpoint.folder import ModelFolder
from app.errors import ModelError
from app.layers.adapters import adapters_of
from app.layers.linear import Head, Linear
from app.layers.methods import choose, float8, integer, integer_gpu
from app.models.adapters import ModelAdapters
from app.models.loader import load_model
from app.settings import load_settings
from tests.kernels.test_gpu import HALF
from tests.kernels.test_gpu_float8 import rounding  # noqa: F401 - used by all tests
from tests.models.families import write_checkpoint
from tests.models.test_quantized import SIZES, write_quantized

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def has_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "has_kernel", lambda _device: True)
    monkeypatch.setattr(integer, "has_kernel", lambda *_: False)
    monkeypatch.setattr(integer_gpu, "has_kernel", lambda *_: True)


def layers(folder: Path, quantization: str, dtype: torch.dtype = torch.float32) -> dict[str, Linear]:
    settings = load_settings(quantization=quantization)
    loaded = load_model(ModelFolder.open(folder), settings, dtype, DEVICE, 200)
    return {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, Linear)}


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize("name", ["FP8", "FP8 in blocks"])
def test_fp8_is_multiplied_as_it_is_stored(name: str, tmp_path: Path) -> None:
    write_quantized(name, tmp_path)
    kept, plain = layers(tmp_path, "auto"), layers(tmp_path, "none")
    for path, layer in kept.items():
        assert isinstance(layer.method, float8.Float8) == (not isinstance(layer, Head)), path
        for rows in (1, 5):
            x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(0)).to(DEVICE)
            out, expected = layer(x), plain[path](x)
            error = float((out - expected).norm() / expected.norm())
            assert error < (0.04 if rows > 1 else 1e-5), path


@pytest.mark.usefixtures("has_kernel")
def test_plain_weights_are_rounded_by_output(tmp_path: Path) -> None:
    write_checkpoint("Llama", SIZES, tmp_path)
    rounded, plain = layers(tmp_path, "fp8"), layers(tmp_path, "auto")
    for path, layer in rounded.items():
        if isinstance(layer, Head):
            assert torch.equal(layer.weight, plain[path].weight)
            continue
        dense = layer.weight.float() * layer.get_buffer("scales").T
        largest = plain[path].weight.abs().amax(1, keepdim=True)
        assert layer.weight.dtype is torch.float8_e4m3fn
        assert bool(
            ((dense - plain[path].weight).abs() <= (plain[path].weight.abs() / 16).clamp(min=largest / 2**17)).all()
        )


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize("name", ["W4A16", "W8A8", "GPTQ with act-order"])
def test_codes_are_multiplied_as_they_are_stored(name: str, tmp_path: Path) -> None:
    write_quantized(name, tmp_path)
    kept, plain = layers(tmp_path, "auto", HALF), layers(tmp_path, "none")
    for path, layer in kept.items():
        assert isinstance(layer.method, integer_gpu.IntegerGpu) == (not isinstance(layer, Head)), path
    path = "layers.0.self_attn.qkv_proj"
    x = torch.randn(3, kept[path].in_features, generator=torch.Generator().manual_seed(0)).to(DEVICE, HALF)
    expected = plain[path](x.float())
    assert float((kept[path](x) - expected).norm() / expected.norm()) < 2**-8


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize(("quantization", "error"), [("int4", 0.12), ("int8", 0.01)])
def test_plain_weights_are_rounded_to_codes(quantization: str, error: float, tmp_path: Path) -> None:
    write_checkpoint("Llama", SIZES, tmp_path)
    rounded, plain = layers(tmp_path, quantization, HALF), layers(tmp_path, "none")
    for path, layer in rounded.items():
        assert isinstance(layer.method, integer_gpu.IntegerGpu)
        one = torch.eye(layer.in_features, dtype=HALF, device=DEVICE)
        found = torch.cat([layer(part) for part in one.split(60)])
        expected = plain[path].weight.T
        found = found if layer.bias is None else found - layer.bias
        assert float((found - expected).norm() / expected.norm()) < (0.01 if isinstance(layer, Head) else error), path


def test_what_has_no_kernel_is_refused(tmp_path: Path) -> None:
    write_checkpoint("Llama", SIZES, tmp_path)
    with pytest.raises(ModelError, match=r"compute capability 8\.9"):
        choose(ModelFolder.open(tmp_path), torch.device("cpu"), torch.float32, "fp8")


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
def test_adapters_are_added_to_what_quantized_layers_compute(quantization: str, tmp_path: Path) -> None:
    write_checkpoint("Llama", SIZES, tmp_path)
    settings = load_settings(quantization=quantization)
    loaded = load_model(ModelFolder.open(tmp_path), settings, HALF, DEVICE, 200)
    layer = loaded.model.layers[0].self_attn.qkv_proj
    x, slots = torch.randn(5, layer.in_features).to(DEVICE, HALF), torch.tensor([1, -1, 0, 1, -1], dtype=torch.int32)
    before, group = layer(x), layer.group_for(x)
    ModelAdapters(loaded.model, 2, 4, torch.empty(0, device=DEVICE, dtype=HALF))
    size = layer.sizes[1]
    a, b = torch.randn(3, layer.in_features), torch.randn(size, 3)
    layer.method.fill(1, {1: (a, b)})  # for k_proj
    assert torch.equal(layer(x), before)
    assert layer.group_for(x) == group
    with adapters_of(slots.to(DEVICE)):
        assert layer.group_for(x) is None
        found = (layer(x) - before).float().cpu()
    expected = torch.zeros_like(found)
    own = slice(layer.sizes[0], layer.sizes[0] + size)
    expected[slots == 1, own] = x.float().cpu()[slots == 1] @ a.T @ b.T
    assert float((found - expected).abs().max()) < 2**-6 * float(expected.abs().max())  # a few roundings
    assert not found[slots != 1].any()
