"""Attention backends against attention in float64 over each request's own tokens."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.attention.backends.base import AttentionBackend
from app.attention.backends.cpu_paged import CpuPagedBackend
from app.attention.backends.memory import zeros
from app.attention.backends.torch_paged import TorchPagedBackend
from app.attention.config import AttentionConfig, LayerCache
from app.attention.step import Ints, StepInput, StepShape
from app.errors import StartupError
from app.kernels.kv import LayerKV

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")
BLOCK = 16
NUM_BLOCKS = 200
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
SINKS = torch.tensor([0.7, -3.0, 2.0, 9.0])
"""Of heads, as far as there are any."""
GROUPED = AttentionConfig(num_heads=9, num_kv_heads=3, head_dim=64, v_head_dim=64, scale=0.125)


@dataclass
class Step:
    """What one step asks of a backend, and every request's whole K and V for the reference."""

    q: Tensor
    k: Tensor
    v: Tensor
    input: StepInput
    metadata: Any
    past: list[tuple[Tensor, Tensor]]


def describe(
    backend: AttentionBackend[Any], spans: list[tuple[int, int]], tables: Tensor, rows: Ints | None = None
) -> tuple[StepInput, Any]:
    """A step with the positions (from, to before) of each row, and a backend's metadata. Decodes come first."""
    rows = np.arange(len(spans)) if rows is None else rows
    positions = [np.arange(*span) for span in spans]
    starts = np.cumsum([0, *(len(of_row) for of_row in positions)])
    slots = [tables[row].numpy()[at // BLOCK] * BLOCK + at % BLOCK for row, at in enumerate(positions)]
    count = int(starts[-1])
    step = StepInput(
        order=np.arange(len(spans)),
        rows=rows,
        input_ids=np.zeros(count, dtype=np.int64),
        input_is_sampled=np.zeros(count, dtype=np.bool_),
        token_rows=np.repeat(rows, np.diff(starts)),
        positions=np.concatenate(positions),
        slot_mappings=[np.concatenate(slots)],
        query_starts=starts,
        seq_lens=np.array([end for _, end in spans]),
        num_decodes=sum(end - start == 1 for start, end in spans),
        block_size=BLOCK,
    )
    shape = StepShape(count, step.num_decodes, len(spans) - step.num_decodes)
    numbers = {name: np.zeros(size, dtype=np.int32) for name, size in backend.fields(shape).items()}
    backend.write(step, numbers)
    on_device = {name: torch.from_numpy(part) for name, part in numbers.items()}
    return step, backend.metadata(step, shape, on_device, [tables])


def make_step(
    backend: AttentionBackend[Any],
    config: AttentionConfig,
    cache: LayerCache,
    work: list[tuple[int, int]],
    dtype: torch.dtype,
    draw: Callable[..., Tensor] = torch.randn,
) -> Step:
    """`work`: (tokens in the cache already, new tokens) of each request. Fills the layer's cache with the past.

    `draw`: makes K and V of a shape.
    """
    counts = [-(-sum(pair) // BLOCK) for pair in work]
    blocks = (1 + torch.randperm(NUM_BLOCKS - 1, dtype=torch.int32)[: sum(counts)]).split(counts)
    firsts = []
    for (known, _), table in zip(work, blocks, strict=True):
        behind = max(0, config.first_seen(known)) // BLOCK
        table[:behind] = 0  # blocks behind the window were given back: this one is somebody else's
        firsts.append(behind * BLOCK)
    tables = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True)
    past = [
        (
            draw(sum(pair), config.num_kv_heads, config.head_dim).to(dtype),
            draw(sum(pair), config.num_kv_heads, config.v_head_dim).to(dtype),
        )
        for pair in work
    ]
    known = [(first, pair[0]) for first, pair in zip(firsts, work, strict=True)]
    for row, (first, end) in enumerate(known):
        if end > first:
            _, metadata = describe(backend, [(0, 0)] * row + [(first, end)], tables)
            backend.store(cache, *(part[first:end] for part in past[row]), metadata)
    step, metadata = describe(backend, [(pair[0], sum(pair)) for pair in work], tables)
    q = torch.randn(step.num_tokens, config.num_heads, config.head_dim).to(dtype)
    new = [
        torch.cat([part[pair[0] :] for part, pair in zip(parts, work, strict=True)])
        for parts in zip(*past, strict=True)
    ]
    return Step(q, *new, step, metadata, past)


def drawn_from_int8(*shape: int) -> Tensor:
    """Numbers that int8 keeps exactly, with other scales for each token and head: powers of two."""
    codes = torch.randint(-127, 128, shape)
    codes[..., 3] = 127
    return codes * 2.0 ** torch.randint(-9, -4, (*shape[:-1], 1))


def left_behind(kv: LayerKV) -> None:
    """Fill memory with what other requests may have left behind."""
    for memory in kv:
        memory.fill_(math.nan if memory.is_floating_point() else 77)


def reference(step: Step, config: AttentionConfig, sinks: Tensor | None = None) -> Tensor:
    """Softmax attention, written out."""
    outputs = []
    for index, (k, v) in enumerate(step.past):
        q = step.q[step.input.query_starts[index] : step.input.query_starts[index + 1]].double()
        repeats = config.num_heads // config.num_kv_heads
        keys, values = (t.double().repeat_interleave(repeats, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, keys) * config.scale
        if config.softcap:
            scores = config.softcap * torch.tanh(scores / config.softcap)
        at = torch.arange(len(k) - len(q), len(k))[:, None]
        seen = torch.arange(len(k)) <= at
        if config.chunked:
            assert config.window
            seen &= torch.arange(len(k)) // config.window == at // config.window
        elif config.window:
            seen &= torch.arange(len(k)) > at - config.window
        scores = scores.masked_fill(~seen, -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, len(q), 1)), dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : len(k)]
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
    return torch.cat(outputs)


# A kernel is compiled for its sizes and its type, which takes seconds. Types differ in how numbers are read and written
# alone, so one configuration meets both.
@pytest.mark.parametrize(
    "make", [lambda _config: TorchPagedBackend(), lambda config: CpuPagedBackend([config], 1)], ids=["torch", "cpu"]
)
@pytest.mark.parametrize(
    ("config", "dtype", "sinks"),
    [
        (GROUPED, torch.float32, None),
        (GROUPED, torch.bfloat16, SINKS.repeat(3)[:9]),
        (AttentionConfig(num_heads=4, num_kv_heads=4, head_dim=24, v_head_dim=16, scale=0.3), torch.float32, SINKS),
        (
            AttentionConfig(num_heads=4, num_kv_heads=1, head_dim=32, v_head_dim=32, scale=0.2, window=20, softcap=3.0),
            torch.float32,
            SINKS,
        ),
        (replace(GROUPED, window=24, chunked=True), torch.float32, None),
    ],
    ids=["grouped", "grouped bfloat16", "values of another size", "window and softcap", "chunked"],
)
def test_a_step_of_decodes_and_chunks(
    config: AttentionConfig,
    make: Callable[[AttentionConfig], AttentionBackend[Any]],
    dtype: torch.dtype,
    sinks: Tensor | None,
) -> None:
    torch.manual_seed(0)
    backend = make(config)
    cache = LayerCache(config, *backend.allocate([config], NUM_BLOCKS, BLOCK, dtype, torch.device("cpu")))
    left_behind(cache.kv)
    decodes = [(known, 1) for known in (0, 1, 14, 15, 16, 31, 40, 100, 500)]
    chunks = [(0, 2), (0, 33), (16, 16), (45, 20)]
    step = make_step(backend, config, cache, decodes + chunks, dtype)
    backend.store(cache, step.k, step.v, step.metadata)
    sinks = None if sinks is None else sinks.to(dtype)
    actual = backend.attend(cache, step.q, sinks, step.metadata).double()
    error = (actual - reference(step, config, sinks)).abs().max()
    assert error < TOLERANCE[dtype], error


def error_of_whole_numbers(config: AttentionConfig) -> float:
    """The largest error of attention with K and V in int8, which keeps them exactly here."""
    torch.manual_seed(0)
    backend = CpuPagedBackend([config], 1)
    cache = LayerCache(config, *backend.allocate([config], NUM_BLOCKS, BLOCK, torch.int8, torch.device("cpu")))
    left_behind(cache.kv)
    work = [(0, 1), (15, 1), (100, 1), (500, 1), (0, 33), (45, 20)]
    step = make_step(backend, config, cache, work, torch.float32, drawn_from_int8)
    backend.store(cache, step.k, step.v, step.metadata)
    actual = backend.attend(cache, step.q, None, step.metadata).double()
    return float((actual - reference(step, config)).abs().max())


@pytest.mark.parametrize("config", [GROUPED, replace(GROUPED, v_head_dim=40, window=20, softcap=3.0)])
def test_whole_numbers_of_8_bits_with_a_scale_for_each_token_and_head(config: AttentionConfig) -> None:
    assert error_of_whole_numbers(config) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("window", [None, 20, 24])
def test_on_the_cpu_a_token_is_computed_alike_in_a_prompt_and_in_a_decode(
    window: int | None, kv_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    config = replace(GROUPED, window=window, chunked=window == 24, softcap=None if window is None else 5.0)
    backend, length = CpuPagedBackend([config], 1), 75
    cache = LayerCache(config, *backend.allocate([config], NUM_BLOCKS, BLOCK, kv_dtype, torch.device("cpu")))
    step = make_step(backend, config, cache, [(0, length)], torch.float32)
    backend.store(cache, step.k, step.v, step.metadata)
    whole = backend.attend(cache, step.q, None, step.metadata)
    tables = torch.from_numpy(step.input.slot_mappings[0][::BLOCK].astype(np.int32) // BLOCK)[None]
    for size in (1, 7, 32):
        for start in range(0, length, size):
            end = min(length, start + size)
            _, metadata = describe(backend, [(start, end)], tables)
            assert torch.equal(backend.attend(cache, step.q[start:end], None, metadata), whole[start:end])
    for num_drafts in (1, 6):  # a row with drafts is several decodes
        first = length - 1 - num_drafts
        spans, of_row = [(at, at + 1) for at in range(first, length)], tables.expand(num_drafts + 1, -1)
        _, metadata = describe(backend, spans, of_row, rows=np.zeros(num_drafts + 1, dtype=np.int64))
        assert torch.equal(backend.attend(cache, step.q[first:], None, metadata), whole[first:])


def test_memory_that_the_system_does_not_promise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("app.attention.backends.memory.mmap.mmap", refuse)
    with pytest.raises(StartupError, match=r"kv_cache_memory: no 2 MiB .*Cannot allocate"):
        zeros((1024, 1024), torch.bfloat16, torch.device("cpu"))
