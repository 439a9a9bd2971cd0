"""Products with quantized weights on the CPU, against float64 and against whole numbers."""

import numpy as np
import pytest
import torch

from app.kernels.cpu import integer
from app.kernels.cpu.experts import route
from app.kernels.cpu.vector_code import lanes_of_processor
from app.layers.formats.codes import Codes, joined, quantize

pytestmark = [
    pytest.mark.skipif(not lanes_of_processor(), reason="the processor has no AVX2"),
    pytest.mark.usefixtures("compiled_kernels"),
]


@pytest.fixture(params=lanes_of_processor(), ids={8: "AVX2", 16: "AVX512-VNNI"}.get)
def lanes(request: pytest.FixtureRequest) -> int:
    """Each of the instruction sets that this processor has."""
    return request.param


def _codes(outputs: int, inputs: int, bits: int, group: int, seed: int = 0) -> Codes:
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=chance, dtype=torch.uint8)
    scales = torch.rand(outputs, inputs // group, generator=chance) * 0.1
    return Codes(codes, scales, torch.randn(scales.shape, generator=chance), bits)


def _product(codes: Codes, x: torch.Tensor, lanes: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    packed = integer.pack(codes.codes, codes.scales, codes.zeros, codes.bits, lanes)
    out = torch.full((len(x), len(codes.codes)), torch.nan)
    integer.multiply(packed, integer.quantize_rows(x, packed.part), bias, 0, out)
    return out


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as the kernel rounds them, in float64."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32)).double()
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scales.clamp(min=1e-30)).round() * scales).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 33, 70])
@pytest.mark.parametrize(
    ("outputs", "inputs", "group"), [(24, 64, 32), (13, 160, 16), (8, 96, 96), (5, 100, 100), (40, 256, 128)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_those_of_float64(bits: int, outputs: int, inputs: int, group: int, rows: int, lanes: int) -> None:
    codes = _codes(outputs, inputs, bits, group)
    chance = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=chance)
    x[0, :3] = torch.tensor([0.0, 1000.0, -1000.0])
    x[-1, 32:64] = 0
    bias = torch.randn(outputs, generator=chance)
    expected = _rounded(x) @ codes.dense().double().T + bias
    # Numbers halfway between two whole ones may be rounded to either, since the kernel rounds in float32.
    torch.testing.assert_close(_product(codes, x, lanes, bias).double(), expected, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("bits", [4, 8])
def test_whole_numbers_are_exact(bits: int, lanes: int) -> None:
    """With scales of 1 and activations that are whole numbers up to 127, nothing is rounded."""
    chance = np.random.default_rng(0)
    codes = _codes(32, 512, bits, 32)
    codes = Codes(codes.codes, torch.ones(32, 16), -torch.full((32, 16), 8.0), bits)
    x = chance.integers(-127, 128, (9, 512))
    x[:, ::32] = 127
    expected = x @ (codes.codes.numpy().astype(np.int64).T - 8)
    np.testing.assert_array_equal(_product(codes, torch.from_numpy(x).float(), lanes).numpy(), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_sums_do_not_overflow(bits: int, lanes: int) -> None:
    codes = Codes(torch.full((8, 64), 2**bits - 1, dtype=torch.uint8), torch.ones(8, 2), torch.zeros(8, 2), bits)
    x = torch.tensor([[127.0], [-127.0]]).expand(2, 64).contiguous()
    expected = torch.tensor([[1.0], [-1.0]]) * 127 * 64 * (2**bits - 1)
    assert torch.equal(_product(codes, x, lanes), expected.expand(2, 8))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_has_the_same_result_in_every_batch(bits: int, lanes: int) -> None:
    codes = quantize(torch.randn(104, 192, generator=torch.Generator().manual_seed(0)), bits, 32)
    x = torch.randn(37, 192, generator=torch.Generator().manual_seed(1))
    together = _product(codes, x, lanes)
    for row in range(37):
        assert torch.equal(_product(codes, x[row : row + 1], lanes)[0], together[row])
    assert torch.equal(_product(codes, x[5:11], lanes), together[5:11])


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(32, 64, 32), (21, 100, 100)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("of_pairs", [True, False])
def test_each_pair_gets_the_product_of_its_expert(
    bits: int, outputs: int, inputs: int, group: int, of_pairs: bool, lanes: int
) -> None:
    """To the last bit what the expert alone gives."""
    experts = [_codes(outputs, inputs, bits, group, seed) for seed in range(5)]
    whole = joined(experts)
    assert whole is not None
    packed = integer.pack(whole.codes, whole.scales, whole.zeros, bits, lanes, num_experts=5)
    chance = torch.Generator().manual_seed(0)
    scores, bias = torch.randn(9, 5, generator=chance), torch.randn(5 * outputs, generator=chance)
    routes = route(scores + torch.tensor([0.0, -9, 0, 9, 0]), 2, True)
    x = torch.randn(18 if of_pairs else 9, inputs, generator=chance)
    out = torch.full((18, outputs), torch.nan)
    integer.multiply(packed, integer.quantize_rows(x, packed.part, routes), bias, 0, out, routes)
    for pair, expert in enumerate(routes.experts.flatten().tolist()):
        row = x[pair if of_pairs else pair // 2][None]
        added = bias.view(5, outputs)[expert].contiguous()
        assert torch.equal(out[pair], _product(experts[expert], row, lanes, added)[0])


def test_all_instruction_sets_give_the_same_numbers() -> None:
    codes = _codes(45, 160, 4, 32)
    x = torch.randn(5, 160, generator=torch.Generator().manual_seed(0))
    results = [_product(codes, x, lanes) for lanes in lanes_of_processor()]
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_is_no_number_stays_so(lanes: int) -> None:
    codes = _codes(8, 64, 4, 32)
    x = torch.ones(3, 64)
    x[0, 5], x[1, 40] = torch.nan, torch.inf
    out = _product(codes, x, lanes)
    assert out[:2].isnan().all()
    assert out[2].isfinite().all()


@pytest.mark.parametrize("is_half", [True, False])
@pytest.mark.parametrize(("bits", "inputs", "group"), [(4, 96, 32), (4, 64, 16), (8, 96, 32), (8, 40, 40)])
def test_rows_are_those_of_the_weight(lanes: int, bits: int, inputs: int, group: int, is_half: bool) -> None:
    codes = _codes(37, inputs, bits, group)
    scales, zeros = codes.scales, codes.zeros
    if is_half:  # also numbers so small that float16 has fewer bits for them
        scales, zeros = (scales * 2.0**-14).half().float(), zeros.half().float()
    packed = integer.pack(codes.codes, scales, zeros, bits, lanes)
    assert packed.scale_bytes == (2 if is_half else 4)
    at = torch.tensor([36, 0, 5, 5, 17])
    expected = (scales.repeat_interleave(group, 1) * codes.codes + zeros.repeat_interleave(group, 1))[at]
    torch.testing.assert_close(integer.take_rows(packed, inputs, at, torch.float32), expected, rtol=2e-6, atol=1e-6)
    out = integer.take_rows(packed, inputs, at, torch.bfloat16)
    torch.testing.assert_close(out, expected.bfloat16(), rtol=2.0**-7, atol=1e-6)


def test_bfloat16_is_read_and_written(lanes: int) -> None:
    codes = _codes(24, 64, 8, 32)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = integer.pack(codes.codes, codes.scales, codes.zeros, codes.bits, lanes)
    out = torch.empty(5, 30, dtype=torch.bfloat16).fill_(7)
    integer.multiply(packed, integer.quantize_rows(x, packed.part), None, 3, out)
    assert torch.equal(out[:, 3:27], _product(codes, x.float(), lanes).bfloat16())
    assert (out[:, :3] == 7).all()
    assert (out[:, 27:] == 7).all()
