"""What a row gets from the kernels of `batch_invariant` is the same to the last bit in any company."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from app.attention.backends.tiles import count_decodes
from app.kernels.gpu import float8, fused, integer, invariant_attention, linear
from app.kernels.kv import LayerKV
from tests.kernels.test_gpu import DEVICE, HALF, SHAPES, Past, close, empty_kv, options_of, randn, rounding
from tests.kernels.test_gpu_float8 import a_weight as float8_weight
from tests.kernels.test_gpu_float8 import dense
from tests.kernels.test_gpu_integer import a_weight as integer_weight

__all__ = ["rounding"]  # a fixture that all tests use
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered")  # numpy's, in the interpreter
IS_GPU = DEVICE.type == "cuda"
COUNTS = range(1, 71) if IS_GPU else (1, 20)
"""Of rows. In the interpreter few, for which tiles have as many inputs: numpy adds these in an order of its own."""
MANY = 300 if IS_GPU else 40
OUTPUTS = 4160 if IS_GPU else 70
TOKENS, TOGETHER = 8, 4
"""Most of a tile of a chunk, and most decodes that are taken together."""


def check_rows(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The product of all rows; those of some, wherever they are among others, are the same."""
    crowd = product(x)
    for count in COUNTS:
        rows = torch.randperm(len(x))[:count].to(x.device)
        assert torch.equal(product(x[rows]), crowd[rows]), count
    return crowd


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("shape", [(200, 520), (OUTPUTS, 640), (9000, 512)][: 3 if IS_GPU else 2], ids=str)
def test_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias, x = randn(*shape, dtype=HALF), randn(shape[0], dtype=HALF), randn(MANY, shape[1], dtype=HALF)
    found = check_rows(lambda rows: linear.invariant(rows, weight, bias, dtype), x)
    close(found, x.double() @ weight.double().T + bias.double(), 2)


@pytest.mark.parametrize("shape", [(40, 80, 80), (OUTPUTS, 512, 512), (96, 384, 128)], ids=str)
def test_products_in_float8(shape: tuple[int, int, int]) -> None:
    group = shape[2]
    weight, stands_for = float8_weight(*shape)
    bias, x = randn(shape[0], dtype=HALF), randn(MANY, shape[1], dtype=HALF)
    found = check_rows(lambda rows: float8.invariant(rows, weight, bias, torch.float32), x)
    close(found.to(HALF), dense(float8.quantize(x, group), group) @ stands_for.T + bias.double(), 2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_whole", [True, False])
def test_products_of_codes(bits: int, is_whole: bool) -> None:
    weight, stands_for = integer_weight(OUTPUTS, 512, 128, bits, is_whole)
    bias, x = randn(OUTPUTS, dtype=HALF), randn(MANY, 512, dtype=HALF)
    found = check_rows(lambda rows: integer.invariant(rows, weight, bias, torch.float32), x)
    close(found.to(HALF), x.double() @ stands_for.T + bias.double(), 2)


def test_what_stands_between_products() -> None:
    x, weight = randn(MANY, 512, dtype=HALF), randn(512, dtype=HALF)
    for group in (None, 512, 128):
        for kernel in (
            lambda rows, group=group: fused.rms_norm(rows, weight, 0.0, 1e-5, rows.clone(), group),
            lambda rows, group=group: fused.gated(rows, "silu", group),
        ):
            check_rows(lambda rows, kernel=kernel: bits_of(kernel(rows)), x)


def bits_of(result: Any) -> Tensor:
    """One tensor of all that says what rows are."""
    return result if isinstance(result, Tensor) else result.values.view(torch.uint8)


def test_heads_are_rotated_and_stored_alike() -> None:
    x, rope, weight = randn(MANY, 6, 64, dtype=HALF), randn(2, MANY, 64), randn(64, dtype=HALF)
    for is_rounded in (False, True):

        def kernel(rows: Tensor, is_rounded: bool = is_rounded) -> Tensor:
            kv = empty_kv(MANY, 1, 64, 64, HALF, is_rounded)
            slots = torch.arange(len(rows), dtype=torch.int32, device=DEVICE)
            at = [table[: len(rows)].contiguous() for table in rope]
            norms = (weight, weight, 0.0, 1e-5)
            q = fused.rotate_and_store(rows, 4, (at[0], at[1]), norms, kv, slots)
            kept = [part[: len(rows) // 16].view(torch.uint8).flatten() for part in kv]
            return torch.cat([q.contiguous().view(torch.uint8).flatten(), *kept])

        for count in COUNTS:
            size = count * 4 * 64 * HALF.itemsize
            assert torch.equal(kernel(x[:count])[:size], kernel(x)[:size])


# Models of transformers, which keep latents, are never batch invariant.
@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"values in keys"}))
@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_token_sees_the_same_in_a_chunk_and_in_a_decode(
    name: str, is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name] | {"bias": None}  # models that want one are encoder-decoders, which are never batch invariant
    monkeypatch.setattr(invariant_attention, "PART", 64)  # a long past is many parts
    chunks = [(0, 9), (45, 20), (250, 11)] if IS_GPU else [(0, 3), (62, 4), (130, 2)]  # first position, tokens
    past = Past(shape, [sum(chunk) for chunk in chunks], [first for first, _ in chunks], HALF, is_rounded)
    rows = [row for row, (_, count) in enumerate(chunks) for _ in range(count)]
    positions = [first + at for first, count in chunks for at in range(count)]
    q = randn(len(rows), shape["heads"], shape["dim"], dtype=HALF)
    options = options_of(shape, HALF)
    in_chunks = attend_in_chunks(q, past.kv, past.tables, rows, positions, TOKENS, options)
    for tokens in (1, 5)[: 2 if IS_GPU else 1]:
        assert torch.equal(attend_in_chunks(q, past.kv, past.tables, rows, positions, tokens, options), in_chunks)
    for splits, many in ((1, 1), (4, 2**30)):  # with many programs, those of decodes may be smaller
        monkeypatch.setattr(invariant_attention, "MANY_PROGRAMS", many)
        out = torch.full_like(in_chunks, math.nan)
        alone, together = [1] * len(rows), count_decodes(np.array(rows), np.array(positions) + 1, TOGETHER)
        for counts in (alone, together.tolist()):
            at, lens, of = (torch.tensor(n, dtype=torch.int32, device=DEVICE) for n in (rows, positions, counts))
            invariant_attention.decode(q, past.kv, past.tables, at, lens + 1, of, out, splits=splits, **options)
            assert torch.equal(out, in_chunks)
    expected = [past.reference(q[i], rows[i], positions[i]) for i in range(len(rows))]
    close(in_chunks.to(HALF).cpu(), torch.stack(expected), 2)


def attend_in_chunks(
    q: Tensor, kv: LayerKV, tables: Tensor, rows: list[int], positions: list[int], most: int, options: dict[str, Any]
) -> Tensor:
    """Of tokens that follow each other in their rows, in tiles of `most` tokens."""
    tiles, at = [], 0
    while at < len(rows):
        count = min(most, rows.count(rows[at]) - (at - rows.index(rows[at])))
        tiles.append([rows[at], at, count, positions[at], 0])
        at += count
    out = torch.full((*q.shape[:2], kv.v.shape[3]), math.nan, device=DEVICE)  # in float32: rounding hides differences
    at_tiles = torch.tensor(tiles, dtype=torch.int32, device=DEVICE)
    invariant_attention.chunks(q, kv, tables, at_tiles, out, tile_tokens=TOKENS, **options)
    return out
