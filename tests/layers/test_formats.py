"""Readers of quantized weights: codes, scales and zeros stand for what other libraries read, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from safetensors import safe_open

from app.checkpoint.gguf.tensors import KINDS, Kind
from app.checkpoint.quantization import Scheme, parse_quantization
from app.layers.formats import format_of
from app.layers.formats.codes import Codes, quantize
from app.layers.formats.gguf import read_blocks
from app.models.four_bit_tensors import FourBitTensors
from tests.layers.packing import AWQ_PLACES, packed

_HALVES = {
    2: (0,),
    3: (0, 2),
    6: (0,),
    7: (0, 2),
    8: (0,),
    10: (80, 82),
    11: (108,),
    12: (0, 2),
    13: (0, 2),
    14: (208,),
}
"""Where the float16 numbers of a block stand."""


def _random_blocks(kind: int, block: Kind, rows: int, blocks: int) -> torch.Tensor:
    """Any bits are codes; scales are ordinary numbers of both signs, some of them very large or very small."""
    chance = np.random.default_rng(kind)
    data = chance.integers(0, 256, (rows, blocks, block.size), dtype=np.uint8)
    for at in _HALVES[kind]:
        exponents = chance.integers(-14, 8, (rows, blocks))
        numbers = (chance.standard_normal((rows, blocks)) * 2.0**exponents).astype(np.float16)
        data[..., at : at + 2] = numbers[..., None].view(np.uint8)
    return torch.from_numpy(data.reshape(rows, -1))


@pytest.mark.parametrize("kind", _HALVES, ids=lambda kind: KINDS[kind].name)
def test_gguf_blocks_are_what_other_libraries_read(kind: int) -> None:
    data = _random_blocks(kind, KINDS[kind], 7, 5)
    codes = read_blocks(KINDS[kind].name, data)
    weight = codes.dense()
    assert codes.codes.dtype is torch.uint8
    assert int(codes.codes.max()) < 2**codes.bits
    expected = gguf_dequantize(data.numpy(), GGMLQuantizationType(kind))
    np.testing.assert_array_equal(weight.numpy(), expected)


# ---------------------------------------------------------------------- compressed-tensors, by its own quantizer

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "W4A16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "W4A16, zeros": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
    "W8A16": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "W8A8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "W8A8, one scale": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "FP8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "FP8, one scale": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "FP8, blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 64]},
    ),
}
_OUT, _IN = 96, 256


@pytest.mark.parametrize("name", CASES)
def test_compressed_tensors(name: str) -> None:
    form, weights = CASES[name]
    arguments = QuantizationArgs(**weights)
    library = QuantizationScheme(targets=["Linear"], weights=arguments, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    shapes = {"group": (_OUT, _IN // 32), "channel": (_OUT, 1), "tensor": (1,), "block": (2, 4)}
    chance = torch.Generator().manual_seed(0)
    scale = torch.rand(shapes[weights["strategy"]], generator=chance) * 0.1 + 0.001
    scale = scale.bfloat16().float()  # models are quantized in the dtype that they were made in
    state = {"weight": torch.randn(_OUT, _IN, generator=chance), "weight_scale": scale}
    if not arguments.symmetric:
        state["weight_zero_point"] = torch.randint(-8, 8, scale.shape, generator=chance, dtype=torch.int8)
    stored = compressor.compress(state, library)
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": library.model_dump()}}
    scheme = parse_quantization(config).scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    found = _decoded(scheme, stored)
    torch.testing.assert_close(found, compressor.decompress(stored, library)["weight"], rtol=0, atol=0)


def _decoded(scheme: Scheme, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight that tensors stand for. They have to be those that the format asks for."""
    reader = format_of(scheme)
    wanted = reader.tensors(_OUT, _IN)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {k: tuple(v) for k, v in wanted.items()}
    return reader.decode(tensors).dense()


# ---------------------------------------------------------------------- AWQ and GPTQ, packed number by number


@pytest.mark.parametrize("group", [64, -1])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize(("bits", "version"), [(4, "gptq"), (4, "gptq_v2"), (8, "gptq"), (2, "gptq")])
def test_gptq(bits: int, version: str, is_sorted: bool, group: int) -> None:
    chance = np.random.default_rng(bits)
    size = _IN if group == -1 else group
    index = np.arange(_IN) // size
    if is_sorted:
        index = chance.permutation(index)
    numbers = chance.integers(0, 2**bits, (_IN, _OUT))
    zero_points = chance.integers(1, 2**bits, (_IN // size, _OUT))
    scales = (chance.random((_IN // size, _OUT)) * 0.1).astype(np.float16).astype(np.float32)
    stored = {
        "qweight": packed(numbers.T, bits).T,
        "qzeros": packed(zero_points - (version == "gptq"), bits),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version}
    scheme = parse_quantization(config).scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    expected = [
        [scales[index[i], o] * (numbers[i, o] - zero_points[index[i], o]) for i in range(_IN)] for o in range(_OUT)
    ]
    np.testing.assert_array_equal(_decoded(scheme, stored).numpy(), np.array(expected, np.float32))


def test_awq() -> None:
    chance = np.random.default_rng(0)
    numbers, zero_points = chance.integers(0, 16, (_IN, _OUT)), chance.integers(0, 16, (_IN // 64, _OUT))
    scales = (chance.random((_IN // 64, _OUT)) * 0.1).astype(np.float16).astype(np.float32)
    stored = {
        "qweight": packed(numbers, 4, AWQ_PLACES),
        "qzeros": packed(zero_points, 4, AWQ_PLACES),
        "scales": torch.from_numpy(scales),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    scheme = parse_quantization(config).scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    expected = [
        [scales[i // 64, o] * (numbers[i, o] - zero_points[i // 64, o]) for i in range(_IN)] for o in range(_OUT)
    ]
    np.testing.assert_array_equal(_decoded(scheme, stored).numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("index", "reason"), [([4] * 128 + [0] * 128, "g_idx"), ([-1] * 64 + [0] * 192, "g_idx"), ([0] * 256, "g_idx")]
)
def test_groups_that_cannot_be_are_refused(index: list[int], reason: str) -> None:
    scheme = Scheme("gptq", 4, 64, zero_offset=1)
    tensors = {name: torch.ones(t.shape, dtype=t.dtype) for name, t in format_of(scheme).tensors(_OUT, _IN).items()}
    with pytest.raises(ValueError, match=reason):
        format_of(scheme).decode(tensors | {"g_idx": torch.tensor(index, dtype=torch.int32)})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "quip"}, "quip"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "3 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size"),
    ],
)
def test_schemes_that_are_not_supported_are_named(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_quantization(config)


# ---------------------------------------------------------------------- Paceline's own quantizer


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_code(bits: int) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    weight[4, 5] = 1000
    codes = quantize(weight, bits, 32)
    step = torch.repeat_interleave(codes.scales, 32, 1)
    assert bool(((codes.dense() - weight).abs() <= step * 0.5001).all())
    assert not codes.dense()[3].any()


# ---------------------------------------------------------------------- bitsandbytes, by its own quantizer

BITSANDBYTES = Path(__file__).with_name("bitsandbytes.safetensors")
"""Random weights that version 0.50.2 has quantized on a CPU, and as `expected` what it makes of them again."""


@pytest.mark.parametrize("name", ["nf4", "fp4", "nested"])
def test_four_bits_of_bitsandbytes(name: str) -> None:
    """Blocks of 64 numbers begin in the middle of rows, and rows in the middle of bytes."""
    with safe_open(BITSANDBYTES, "pt") as file:
        tensors, expected = FourBitTensors(file), file.get_tensor(f"{name}.expected")
        assert [key for key in tensors.keys() if name in key] == [f"{name}.expected", f"{name}.weight"]  # noqa: SIM118
        weight = tensors.get_slice(f"{name}.weight")
        for rows in (slice(None), slice(3, 8), slice(4, 5), slice(20, 99)):
            torch.testing.assert_close(weight[rows], expected[rows], rtol=0, atol=0)


def test_int8_of_bitsandbytes() -> None:
    """Codes are the stored ones. `scale * code + zero` rounds more often in float32 than bitsandbytes' one product."""
    scheme = parse_quantization({"quant_method": "bitsandbytes", "load_in_8bit": True}).scheme("model.layers.0.up_proj")
    assert scheme is not None
    with safe_open(BITSANDBYTES, "pt") as file:
        tensors = {name: file.get_tensor(f"int8.{name}") for name in format_of(scheme).tensors(24, 41)}
        codes = format_of(scheme).decode(tensors)
        torch.testing.assert_close(codes.dense(), file.get_tensor("int8.expected"), rtol=0, atol=1e-6)
    assert isinstance(codes, Codes)
    assert torch.equal(codes.codes.to(torch.int16) - 128, tensors["weight"].to(torch.int16))
