"""The GPU's kernels for weights that are small whole numbers, against float64 and the numbers that the weights are."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from app.kernels.gpu import integer
from app.kernels.gpu.integer import Weight
from app.layers.formats.codes import Codes
from tests.kernels.test_gpu import DEVICE, HALF, close, randn


def a_weight(outputs: int, inputs: int, group: int, bits: int, is_whole: bool) -> tuple[Weight, Tensor]:
    """A weight with all codes that there are, and what it stands for."""
    torch.manual_seed(0)
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8)
    scales = (torch.rand(outputs, inputs // group) / 100 + 1e-3).half().float()
    zeros = -torch.randint(0, 2**bits + 1, scales.shape) * scales  # AutoGPTQ's points go from 1 to 2 ** bits
    if not is_whole:
        zeros = torch.randn(scales.shape) / 10
        scales[3, 0] = 0.0
    dense = Codes(codes.int(), scales.double(), zeros.double(), bits).dense()  # type: ignore[arg-type]
    weight = integer.pack(codes.to(DEVICE), scales.to(DEVICE), zeros.to(DEVICE), bits)
    assert weight.has_whole_points == is_whole
    return weight, dense.to(DEVICE)


@pytest.mark.parametrize("shape", [(70, 512, 128), (33, 96, 32), (40, 72, 72)], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_whole", [True, False])
def test_products(shape: tuple[int, int, int], bits: int, is_whole: bool) -> None:
    outputs, inputs, group = shape
    weight, dense = a_weight(outputs, inputs, group, bits, is_whole)
    bias = randn(outputs, dtype=HALF)
    for rows, dtype in ((1, torch.float32), (1, HALF), (5, torch.float32), (integer.MOST_ROWS + 1, HALF)):
        x = randn(rows, inputs, dtype=HALF)
        close(integer.multiply(x, weight, bias, dtype), x.double() @ dense.T + bias.double(), 2)
    close(integer.dequantize(weight, torch.float32), dense)
    assert not weight.counters.any()


def test_a_row_does_not_depend_on_the_others() -> None:
    weight, _ = a_weight(70, 512, 128, 4, True)
    x = randn(40, 512, dtype=HALF)
    crowd = integer.few_rows(x, weight, None, torch.float32)
    assert torch.equal(integer.few_rows(x[:2], weight, None, torch.float32), crowd[:2])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="cuBLAS wants a GPU")
def test_logits_of_many_rows() -> None:
    weight, dense = a_weight(70, 512, 128, 8, True)
    x = randn(100, 512, dtype=HALF)
    close(integer.multiply(x, weight, None, torch.float32), x.double() @ dense.T, 10_000)


@pytest.mark.parametrize("programs", [1, 4, 128])
def test_tiles_of_all_sizes(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than a GPU runs at once are wide, and few tiles are shared by several programs."""
    monkeypatch.setattr(integer, "_PROGRAMS", programs)
    weight, dense = a_weight(200, 512, 128, 4, True)
    for rows in (20, 70):
        x = randn(rows, 512, dtype=HALF)
        close(integer.few_rows(x, weight, None, torch.float32), x.double() @ dense.T)
    assert not weight.counters.any()
