"""The GPU's kernels against plain torch in float64: on a GPU where there is one, else in Triton's interpreter."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime import interpreter

from app.kernels.gpu import fused, linear, paged_attention, sampling
from app.kernels.kv import LayerKV

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Relative to the largest number: a few roundings."""
BLOCK_SIZE = 16
LARGEST = 448.0
"""Number of e4m3."""
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter's products of bfloat16 are wrong
pytestmark = [  # numpy's, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered"),
]


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter round to e4m3 as GPUs do: its own rounding makes a number just below a power of two half."""
    own = interpreter._convert_float

    def convert(numbers: Any, source: Any, target: Any, mode: Any) -> Any:
        if target.name != "fp8e4nv":
            return own(numbers, source, target, mode)
        rounded = torch.from_numpy(numbers.view("float32")).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return rounded.view(torch.uint8).numpy()

    if DEVICE.type == "cpu":
        monkeypatch.setattr(interpreter, "_convert_float", convert)
    torch.manual_seed(0)


def close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    assert not actual.isnan().any()
    error = (actual.double() - expected).abs().max()
    assert error <= factor * TOLERANCE[actual.dtype] * expected.abs().max() + 1e-30, error


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.fixture(params=[torch.float32, HALF], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    return request.param


# ---------------------------------------------------------------------- between the large products


@pytest.mark.parametrize("shape", [(1, 7), (3, 4, 64), (5, 576)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(shape: tuple[int, ...], offset: float, dtype: torch.dtype) -> None:
    x, residual, weight = (randn(*s, dtype=dtype) for s in (shape, shape, shape[-1:]))
    expected = F.rms_norm(x.double(), weight.shape, weight.double() + offset, 1e-5)
    close(fused.rms_norm(x, weight, offset, 1e-5), expected)
    total = x + residual
    expected = F.rms_norm(total.double(), weight.shape, weight.double() + offset, 1e-5)
    close(fused.rms_norm(x, weight, offset, 1e-5, residual), expected)
    close(residual, total.double())  # the interpreter cuts bfloat16 off instead of rounding


@pytest.mark.parametrize("gates_first", [False, True])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_gated_rms_norm(activation: str, gates_first: bool, dtype: torch.dtype) -> None:
    """On two groups of 48 numbers."""
    x, gate, weight = randn(5, 2, 96, dtype=dtype), randn(5, 2, 96, dtype=dtype), randn(96, dtype=dtype)
    factor = F.silu(gate.double()) if activation == "silu" else gate.double().sigmoid()
    values = (x.double() * factor if gates_first else x.double()).unflatten(-1, (2, 48))
    expected = (values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight.double()
    expected = expected if gates_first else expected * factor
    for gates in (gate, torch.cat([gate, gate], dim=1)[:, 2:]):  # also as parts of longer rows
        close(fused.gated_rms_norm(x, gates, weight, 1e-5, 48, activation, gates_first), expected)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("size", [1, 96, 1500])
def test_gated(activation: str, size: int, dtype: torch.dtype) -> None:
    gate_up = 10 * randn(3, 2 * size, dtype=dtype)
    gate_up[0, 0] = -200.0
    gate, up = gate_up.double().chunk(2, dim=-1)
    gate = (
        F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="none" if activation == "gelu" else "tanh")
    )
    close(fused.gated(gate_up, activation), gate * up)


@pytest.mark.parametrize("size", [1, 96, 1500])
def test_clamped(size: int, dtype: torch.dtype) -> None:
    gate_up = 10 * randn(3, 2 * size, dtype=dtype)
    gate, up = gate_up.double()[:, ::2].clamp(max=7.0), gate_up.double()[:, 1::2].clamp(-7.0, 7.0)
    close(fused.clamped(gate_up, 1.702, 7.0), gate * torch.sigmoid(1.702 * gate) * (up + 1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    size = cos.shape[-1]
    first, second = x[..., :size].chunk(2, dim=-1)
    turned = x[..., :size] * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return torch.cat((turned, x[..., size:]), dim=-1)


@pytest.mark.parametrize("rotary_dim", [64, 24, 0])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_rotate_and_store(rotary_dim: int, norms: bool, is_rounded: bool, dtype: torch.dtype) -> None:
    heads, kv_heads, dim, slots = 6, 2, 64, [5, -1, 16, 47]
    qkv = randn(4, heads + 2 * kv_heads, dim, dtype=dtype)
    angles = torch.randn(4, rotary_dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)
    weights = randn(dim, dtype=dtype), randn(dim, dtype=dtype)
    kv = empty_kv(3, kv_heads, dim, dim, dtype, is_rounded)
    q = fused.rotate_and_store(
        qkv, heads, (cos, sin) if rotary_dim else None, (*weights, 1.0, 1e-6) if norms else None, kv,
        torch.tensor(slots, device=DEVICE, dtype=torch.int32),
    )  # fmt: skip
    exact_q, exact_k, v = qkv.double().split((heads, kv_heads, kv_heads), dim=1)
    if norms:
        exact_q, exact_k = (
            F.rms_norm(x, (dim,), w.double() + 1.0, 1e-6) for x, w in ((exact_q, weights[0]), (exact_k, weights[1]))
        )
    if rotary_dim:
        exact_q, exact_k = (rotated(x, cos.double(), sin.double()) for x in (exact_q, exact_k))
    close(q, exact_q, 2)
    for token, slot in enumerate(slots):
        if slot >= 0:
            block, offset = divmod(slot, BLOCK_SIZE)
            k_kept, v_kept = (kept[block, :, offset] for kept in (kv.k, kv.v))
            if is_rounded:
                k_scales, v_scales = (scales[block, :, offset, None] for scales in (kv.k_scales, kv.v_scales))
                is_float8_of(k_kept, k_scales, exact_k[token], dtype)
                is_float8_of(v_kept, v_scales, v[token], dtype)
            else:
                close(k_kept, exact_k[token], 2)
                assert torch.equal(v_kept.double(), v[token])
    assert kv.k[:, 0, :, 0].float().isfinite().sum() == 3  # padding goes nowhere


@pytest.mark.parametrize(("rows", "shape"), [(1, (5, 7)), (1, (64, 1500)), (3, (40, 72)), (33, (4100, 264))])
@pytest.mark.parametrize("has_bias", [False, True])
def test_product_of_few_rows(rows: int, shape: tuple[int, int], has_bias: bool, dtype: torch.dtype) -> None:
    if rows > 1 and dtype is torch.float32:
        pytest.skip("not for float32")
    x, weight, bias = randn(rows, shape[1], dtype=dtype), randn(*shape, dtype=dtype), randn(shape[0], dtype=dtype)
    expected = x.double() @ weight.double().T + (bias.double() if has_bias else 0.0)
    close(linear.skinny(x, weight, bias if has_bias else None, dtype), expected)
    close(linear.skinny(x, weight, bias if has_bias else None, torch.float32), expected)


@pytest.mark.parametrize("is_rounded", [False, True])
def test_store(is_rounded: bool) -> None:
    new = randn(3, 8, 24)[:, 2:5]
    cache, _, scales, _ = empty_kv(3, 3, 24, 24, torch.float32, is_rounded)
    fused.store(new, cache, scales, torch.tensor([17, -1, 0], device=DEVICE, dtype=torch.int32))
    for token, block, offset in ((0, 1, 1), (2, 0, 0)):
        if is_rounded:
            is_float8_of(cache[block, :, offset], scales[block, :, offset, None], new[token].double(), torch.float32)
        else:
            assert torch.equal(cache[block, :, offset], new[token])
    assert cache.float().isfinite().sum() == 2 * 3 * 24


def empty_kv(blocks: int, kv_heads: int, dim: int, v_dim: int, dtype: torch.dtype, is_rounded: bool) -> LayerKV:
    """Memory as others may have left it behind; if it is rounded, in FP8 with scales."""
    kept = torch.float8_e4m3fn if is_rounded else dtype
    k, v = (torch.full((blocks, kv_heads, BLOCK_SIZE, size), math.nan, device=DEVICE).to(kept) for size in (dim, v_dim))
    scales = torch.full((2, blocks if is_rounded else 0, kv_heads, BLOCK_SIZE), math.nan, device=DEVICE)
    return LayerKV(k, v, *scales)


def is_float8_of(kept: Tensor, scales: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Check numbers (heads, dim) in FP8 with scales (heads, 1): e4m3 has 4 significant bits, and ends at 448.

    `dtype`: what they were rounded to before.
    """
    assert kept.float().abs().amax(1).eq(448).all()
    error = (kept.double() * scales - exact).abs()
    own = (exact.abs() / 16).maximum(scales * 2**-10) * 1.01
    assert (error <= own + 2 * TOLERANCE[dtype] * exact.abs().max()).all()


# ---------------------------------------------------------------------- attention

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 9, "kv_heads": 3, "dim": 64, "v_dim": 64},
    "odd sizes": {"heads": 2, "kv_heads": 2, "dim": 24, "v_dim": 16, "sinks": torch.tensor([-2.0, 3.0])}
    | {"bias": torch.linspace(-3, 5, 80).sin().mul(3).view(2, 40)},
    "window, softcap": {"heads": 4, "kv_heads": 1, "dim": 32, "v_dim": 32, "window": 20, "softcap": 3.0}
    | {"sinks": torch.tensor([2.0, -9.0, 0.5, 40.0])},
    "chunked": {"heads": 4, "kv_heads": 2, "dim": 32, "v_dim": 32, "window": 24, "chunked": True},
    "values in keys": {"heads": 66, "kv_heads": 1, "dim": 40, "v_dim": 32, "values_in_keys": True},
}
NONE = {"window": None, "chunked": False, "softcap": None, "sinks": None, "bias": None}
SHAPES = {name: NONE | shape for name, shape in SHAPES.items()}


class Past:
    """K and V of some requests, in blocks anywhere, among numbers that others left behind.

    With a window, the blocks behind it were given back: tables name one of somebody else there.
    """

    def __init__(
        self, shape: dict[str, Any], lengths: list[int], firsts: list[int], dtype: torch.dtype, is_rounded: bool
    ) -> None:
        """`firsts`: the first position of each request that is asked about. If rounded, K and V are in FP8."""
        counts = [-(-length // BLOCK_SIZE) for length in lengths]
        num_blocks = sum(counts) + 2
        self.shape, self.lengths = shape, lengths
        self.kv = empty_kv(num_blocks, shape["kv_heads"], shape["dim"], shape["v_dim"], dtype, is_rounded)
        in_keys = shape.get("values_in_keys", False)
        if in_keys:
            self.kv = self.kv._replace(v=self.kv.v[:, :, :0], v_scales=self.kv.v_scales[:, :, :0])
        draw = drawn_from_float8 if is_rounded else torch.randn
        self.tables = torch.full((len(lengths), max(counts) + 1), num_blocks - 1, dtype=torch.int32)
        blocks = torch.randperm(num_blocks - 1)
        self.past = []
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            table, blocks = blocks[:count], blocks[count:]
            behind = self.first_seen(firsts[row]) // BLOCK_SIZE
            self.tables[row, behind:count] = table[behind:]
            k, v = (draw(length, shape["kv_heads"], d).to(dtype) for d in (shape["dim"], shape["v_dim"]))
            v = k[..., : shape["v_dim"]] if in_keys else v
            for position in range(behind * BLOCK_SIZE, length):
                place = table[position // BLOCK_SIZE], slice(None), position % BLOCK_SIZE
                of_values = () if in_keys else ((v, self.kv.v, self.kv.v_scales),)
                for numbers, kept, scales in ((k, self.kv.k, self.kv.k_scales), *of_values):
                    if is_rounded:
                        scale = numbers[position].abs().amax(1, keepdim=True) / 448
                        kept[place] = (numbers[position] / scale).to(kept)
                        scales[place] = scale[:, 0].to(scales)
                    else:
                        kept[place] = numbers[position].to(kept)
            self.past.append((k.double(), v.double()))
        self.tables = self.tables.to(DEVICE)

    def first_seen(self, position: int) -> int:
        """Where the window of a token begins."""
        size = self.shape["window"]
        if size is None:
            return 0
        return position - position % size if self.shape["chunked"] else max(0, position + 1 - size)

    def reference(self, q: Tensor, request: int, position: int, last: int | None = None) -> Tensor:
        """Attention of q (heads, dim), at a position, which sees up to itself or a `last` one, written out."""
        shape, last = self.shape, position if last is None else last
        first = self.first_seen(position)
        repeats = shape["heads"] // shape["kv_heads"]
        k, v = (t[first : last + 1].repeat_interleave(repeats, dim=1) for t in self.past[request])
        scores = torch.einsum("hd,khd->hk", q.double().cpu(), k) * 0.2
        if shape["softcap"]:
            scores = shape["softcap"] * torch.tanh(scores / shape["softcap"])
        if shape["bias"] is not None:
            distances = (position - torch.arange(first, last + 1)).clamp(0, shape["bias"].shape[1] - 1)
            scores = scores + shape["bias"].double()[:, distances]
        if shape["sinks"] is not None:  # one more key, whose value is 0
            scores = torch.cat((scores, shape["sinks"].double()[:, None]), dim=1)
            v = torch.cat((v, torch.zeros_like(v[:1])))
        return torch.einsum("hk,khd->hd", scores.softmax(-1), v)


def drawn_from_float8(*shape: int) -> Tensor:
    """Numbers that e4m3 keeps exactly, with other scales for each token and head: powers of two."""
    codes = (torch.randn(shape) * 100).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    codes[..., 3] = 448
    return codes * 2.0 ** torch.randint(-10, -6, (*shape[:-1], 1))


def options_of(shape: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel is told of a shape of `SHAPES`."""
    sinks = None if shape["sinks"] is None else shape["sinks"].to(DEVICE, dtype)
    bias = None if shape["bias"] is None else shape["bias"].to(DEVICE)
    return {"scale": 0.2, **{name: shape[name] for name in NONE}, "sinks": sinks, "bias": bias}


# Each two of number of parts, rounding and type meet, with every shape: they do not depend on one another.
@pytest.mark.parametrize(
    ("splits", "is_rounded", "dtype"),
    [(1, False, torch.float32), (1, True, HALF), (4, False, HALF), (4, True, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decode(shape: dict[str, Any], splits: int, is_rounded: bool, dtype: torch.dtype) -> None:
    lengths = [1, 15, 16, 17, 64, 66, 300]
    most = max(1, paged_attention.DECODE_QUERIES // (shape["heads"] // shape["kv_heads"]))
    numbers = [min(most, number) for number in (1, 1, 1, 2, 1, 4, 3)]  # of decodes that are taken together
    past = Past(
        shape, lengths, [length - number for length, number in zip(lengths, numbers, strict=True)], dtype, is_rounded
    )
    order = [row for row in (3, 0, 6, 5, 4, 2, 1) for _ in range(numbers[row])]
    counts = [numbers[row] if row != before else 0 for before, row in pairwise([-1, *order])]
    seen = [lengths[row] + 1 - left for row in (3, 0, 6, 5, 4, 2, 1) for left in range(numbers[row], 0, -1)]
    of_decodes = torch.tensor([[*order, 0], [*seen, 0], [*counts, 1]], device=DEVICE, dtype=torch.int32)
    q = randn(len(order) + 1, shape["heads"], shape["dim"], dtype=dtype)
    out = torch.full((len(q), shape["heads"], shape["v_dim"]), math.nan, dtype=dtype, device=DEVICE)
    paged_attention.decode(
        q, past.kv, past.tables, *of_decodes, out, splits=splits, **options_of(shape, dtype),
    )  # fmt: skip
    expected = [past.reference(q[i], order[i], seen[i] - 1) for i in range(len(order))]
    close(out[:-1].cpu(), torch.stack(expected), 2)
    assert not out[-1].any()


def test_decode_of_a_long_past() -> None:
    torch.manual_seed(0)
    length = 131_072
    k, v = randn(length // BLOCK_SIZE, 1, BLOCK_SIZE, 16), randn(length // BLOCK_SIZE, 1, BLOCK_SIZE, 16)
    table = torch.randperm(length // BLOCK_SIZE, dtype=torch.int32, device=DEVICE)
    q, out = randn(1, 1, 16), torch.full((1, 1, 16), math.nan, device=DEVICE)
    row, seq_len, count = (torch.tensor([value], dtype=torch.int32, device=DEVICE) for value in (0, length - 3, 1))
    paged_attention.decode(
        q, LayerKV(k, v, k, v), table[None], row, seq_len, count, out, scale=0.2, **NONE, splits=4,
        tiling=paged_attention.Tiling(512, 4, 3),
    )  # fmt: skip
    keys, values = (t[table.long()].view(-1, 16)[: length - 3].double() for t in (k, v))
    weights = (0.2 * keys @ q[0, 0].double()).softmax(-1)
    close(out[0, 0], weights @ values, 4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("is_rounded", [False, True])
def test_chunks(shape: dict[str, Any], is_rounded: bool, dtype: torch.dtype) -> None:
    chunks = [(0, 2), (0, 33), (16, 16), (45, 20)]  # first position, tokens
    ends = [0, 0, 32, 0]  # the tokens of one are those of an image, which see each other
    past = Past(shape, [sum(chunk) for chunk in chunks], [first for first, _ in chunks], dtype, is_rounded)
    tiles, starts, at = [], [], 3
    for row, (first, count) in enumerate(chunks):
        starts.append(at)
        tiles += [[row, at + t, min(8, count - t), first + t, ends[row]] for t in range(0, count, 8)]
        at += count
    tiles.insert(2, [-1, 0, 0, 0, 0])
    q = randn(at, shape["heads"], shape["dim"], dtype=dtype)
    out = torch.full((at, shape["heads"], shape["v_dim"]), math.nan, dtype=dtype, device=DEVICE)
    paged_attention.chunks(
        q, past.kv, past.tables, torch.tensor(tiles, device=DEVICE, dtype=torch.int32), out, tile_tokens=8,
        **options_of(shape, dtype),
    )  # fmt: skip
    for row, ((first, count), start) in enumerate(zip(chunks, starts, strict=True)):
        expected = [past.reference(q[start + t], row, first + t, max(first + t, ends[row] - 1)) for t in range(count)]
        close(out[start : start + count].cpu(), torch.stack(expected), 2)
    assert out[:3].isnan().all()


# ---------------------------------------------------------------------- sampling

VOCAB = 5000


def sampling_tensors(rows: list[int], position: int = 7, **values: list[float]) -> sampling.SamplingTensors:
    """Greedy and without penalties, but for `values`."""
    off = {
        "seed": 0, "temperature": 0, "top_k": VOCAB, "top_p": 1, "min_p": 0, "adjusts": 0, "presence": 0,
        "frequency": 0, "repetition": 1, "masked": 0, "may_not_stop": 0, "drafts": -1, "depths": 0,
    }  # fmt: skip
    floats = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
    kinds = {"seed": torch.int64} | dict.fromkeys(floats, torch.float32)
    tensors = {
        name: torch.tensor(values.get(name, [value] * len(rows)), dtype=kinds.get(name, torch.int32), device=DEVICE)
        for name, value in off.items()
    }
    indices = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    return sampling.SamplingTensors(indices, torch.full_like(indices, position), **tensors)


def choose(
    logits: Tensor, params: sampling.SamplingTensors, memory: sampling.RowMemory | None = None, draws: bool = True
) -> list[int]:
    count = len(params.rows)
    memory = memory or sampling.RowMemory(count, count, VOCAB, DEVICE)
    tokens = torch.full((count,), -9, dtype=torch.int32, device=DEVICE)
    sampling.choose(logits, params, memory, sampling.Scratch(count, VOCAB, DEVICE), tokens, draws=draws)
    return tokens.tolist()


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = randn(4, VOCAB)
    logits[0, 10] = logits[0, 700] = 9.0
    logits[1, 5] = math.nan
    logits[3] = -math.inf
    for draws in (False, True):
        memory = sampling.RowMemory(4, 4, VOCAB, DEVICE)
        memory.last_sampled.fill_(-9)
        assert choose(logits, sampling_tensors([2, 0, -1, 3]), memory, draws) == [10, -2, -9, -2]
        assert memory.last_sampled.tolist() == [0, -9, 10, 0]


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may be drawn, by sorting."""
    probs = (logits.double() / temperature).softmax(-1)
    order = probs.argsort(descending=True)[:top_k].tolist()
    probs = probs / probs[order].sum()
    result, before = set(), 0.0
    for token in order:
        if before >= top_p:
            break
        if probs[token] >= min_p * probs[order[0]]:
            result.add(token)
        before += float(probs[token])
    return result


FILTERS = [
    (1.0, 5, 1.0, 0.0), (0.8, 50, 0.95, 0.0), (1.0, VOCAB, 0.5, 0.0), (2.0, VOCAB, 0.99, 0.0), (0.7, VOCAB, 1.0, 0.2),
    (1.0, 1, 1.0, 0.0), (1.0, 30, 1.0, 0.0), (1.0, 4999, 1.0, 0.0),
    (1.0, VOCAB, 0.05, 0.0), (1.5, 20, 0.9, 0.05), (1.0, VOCAB, 1e-6, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
def test_filters(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(1)
    logits = 3 * randn(1, VOCAB)
    may_be = kept(logits[0].cpu(), temperature, top_k, top_p, min_p)
    draws = 3 if DEVICE.type == "cpu" else 64
    params = sampling_tensors(
        list(range(draws)), temperature=[temperature] * draws, top_k=[top_k] * draws, top_p=[top_p] * draws,
        min_p=[min_p] * draws, seed=[2**40 + i for i in range(draws)],
    )  # fmt: skip
    tokens = choose(logits.expand(draws, -1).contiguous(), params)
    assert set(tokens) <= may_be
    assert len(set(tokens)) >= min(len(may_be), 2)


def test_tokens_are_drawn_with_their_probabilities_and_by_seed_and_position_alone() -> None:
    draws = 100
    logits = torch.full((VOCAB,), -math.inf)
    logits[[3, 50, 999]] = torch.tensor([0.5, 0.3, 0.2]).log()
    logits = logits.expand(draws, -1).contiguous().to(DEVICE)
    rows, temperature = list(range(draws)), [1.0] * draws
    tokens = choose(logits, sampling_tensors(rows, temperature=temperature, seed=rows))
    for token, share in ((3, 0.5), (50, 0.3), (999, 0.2)):
        assert abs(tokens.count(token) / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)
    again = choose(logits[:10], sampling_tensors([7] * 10, temperature=[1.0] * 10, seed=rows[9::-1]))
    assert again[::-1] == tokens[:10]
    assert choose(logits, sampling_tensors(rows, position=8, temperature=temperature, seed=rows)) != tokens


def test_penalties_and_bias() -> None:
    logits = 3 * randn(2, VOCAB)
    params = sampling_tensors(
        [1, 2, 0], adjusts=[1, 1, 0], presence=[0.5, 0, 9], frequency=[0.25, 0, 9], repetition=[1.5, 1.0, 9]
    )
    memory = sampling.RowMemory(3, 3, VOCAB, DEVICE)
    memory.counts[1, :3] = torch.tensor([0, 1, 2 * 3 + 1], dtype=torch.int16)
    memory.bias[1, 4], memory.bias[2, 7] = -math.inf, 2.5
    expected = logits.clone()
    first = logits[0, 1:3]
    expected[0, 1:3] = torch.where(first > 0, first / 1.5, first * 1.5)
    expected[0, 2] -= 0.5 + 3 * 0.25
    expected[0, 4] = -math.inf
    expected[1, 7] += 2.5
    batch = torch.cat((logits, logits[:1]))
    sampling.adjust(batch, params, memory)
    assert torch.allclose(batch[:2], expected)
    assert torch.equal(batch[2], logits[0])


def test_what_is_drawn_is_counted() -> None:
    memory = sampling.RowMemory(2, 2, VOCAB, DEVICE)
    logits = torch.full((2, VOCAB), -math.inf).to(DEVICE)
    logits[:, 8] = 0.0
    for _ in range(3):
        choose(logits, sampling_tensors([0, 1], temperature=[1.0, 1.0]), memory)
    assert memory.counts[0, 8] == 2 * 3 + 1
    assert memory.counts.ne(0).sum() == 2


def test_penalties_and_stops_behind_drafts() -> None:
    """Each entry of a row goes by the drafts before it, and nothing of them is remembered."""
    params = sampling_tensors(
        [1, 1, 1, 0], adjusts=[1, 1, 1, 1], presence=[0.5] * 4, frequency=[0.25] * 4, repetition=[2.0] * 4,
        drafts=[6, 6, -1, -1], depths=[0, 1, 2, 0], may_not_stop=[1, 1, 0, 0],
    )  # fmt: skip
    memory = sampling.RowMemory(2, 4, VOCAB, DEVICE)
    memory.counts[1, 6] = 2 + 1
    memory.stops[1, 1] = 1 << 8
    logits = torch.full((4, VOCAB), 4.0, device=DEVICE)
    sampling.adjust(logits, params, memory)
    assert logits[:, 6].tolist() == [2 - 0.5 - 0.25, 2 - 0.5 - 2 * 0.25, 2 - 0.5 - 3 * 0.25, 4]
    assert logits[:, 40].tolist() == [-math.inf, -math.inf, 4, 4]
    assert logits[:, 41].eq(4).all()
    assert memory.counts.count_nonzero() == 1


@pytest.mark.parametrize(("drafts", "right"), [([8, 9], 2), ([8, 7], 1), ([7, 9], 0)])
def test_tokens_behind_right_drafts_are_taken(drafts: list[int], right: int) -> None:
    """Row 2 has two drafts, row 0 a wrong one."""
    memory = sampling.RowMemory(3, 5, VOCAB, DEVICE)
    logits = torch.full((5, VOCAB), -math.inf).to(DEVICE)
    logits[range(5), [8, 9, 10, 11, 12]] = 0.0
    params = sampling_tensors(
        [2, 2, 2, 0, 0], temperature=[1.0] * 5, drafts=[*drafts, -1, 10, -1], depths=[0, 1, 2, 0, 1]
    )
    assert choose(logits, params, memory) == [8, 9, 10, 11, 12]
    assert memory.last_sampled.tolist() == [11, 0, 8 + right]
    for row, tokens in ((0, [11]), (2, [8, 9, 10][: right + 1])):
        assert memory.counts[row].nonzero()[:, 0].tolist() == tokens
