"""Attention backends against attention in float64 over each request's own tokens."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from app.attention.backends.base import AttentionBackend
from app.attention.backends.cpu_paged import CpuMetadata, CpuPagedBackend
from app.attention.backends.torch_paged import AttentionMetadata, TorchPagedBackend
from app.attention.config import AttentionConfig, LayerCache

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")
BLOCK = 16
NUM_BLOCKS = 200
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
GROUPED = AttentionConfig(num_heads=9, num_kv_heads=3, head_dim=64, v_head_dim=64, scale=0.125)


@dataclass
class Step:
    """What one step asks of a backend, and every request's whole K and V for the reference."""

    q: Tensor
    k: Tensor
    v: Tensor
    metadata: AttentionMetadata
    past: list[tuple[Tensor, Tensor]]


def make_step(config: AttentionConfig, cache: LayerCache, work: list[tuple[int, int]], dtype: torch.dtype) -> Step:
    """`work`: (tokens in the cache already, new tokens) of each request. Fills the layer's cache with the past."""
    slots, past, starts = [], [], [0]
    counts = [-(-sum(pair) // BLOCK) for pair in work]
    blocks = (1 + torch.randperm(NUM_BLOCKS - 1)[: sum(counts)]).split(counts)
    q, new_k, new_v = [], [], []
    for (known, new), table in zip(work, blocks, strict=True):
        total = known + new
        behind = 0 if config.window is None else max(0, known + 1 - config.window) // BLOCK
        table[:behind] = 0  # blocks behind the window were given back: this one is somebody else's
        first = behind * BLOCK
        k = torch.randn(total, config.num_kv_heads, config.head_dim).to(dtype)
        v = torch.randn(total, config.num_kv_heads, config.v_head_dim).to(dtype)
        places = (table[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:total]
        cache.k.flatten(1, 2)[:, places[first:known]] = k[first:known].transpose(0, 1)
        cache.v.flatten(1, 2)[:, places[first:known]] = v[first:known].transpose(0, 1)
        slots.append(places[known:])
        past.append((k, v))
        new_k.append(k[known:])
        new_v.append(v[known:])
        q.append(torch.randn(new, config.num_heads, config.head_dim).to(dtype))
        starts.append(starts[-1] + new)
    tables, lengths = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True), [sum(pair) for pair in work]
    num_decodes = sum(new == 1 for _, new in work)
    metadata = CpuMetadata(
        slot_mappings=[torch.cat(slots)],
        block_tables=[tables],
        query_starts=starts,
        seq_lens=lengths,
        num_decodes=num_decodes,
        block_size=BLOCK,
        all_tables=[tables],
        decode_rows=torch.arange(num_decodes),
        decode_lens=torch.tensor(lengths[:num_decodes]),
    )
    return Step(torch.cat(q), torch.cat(new_k), torch.cat(new_v), metadata, past)


def reference(step: Step, config: AttentionConfig) -> Tensor:
    """Softmax attention, written out."""
    outputs = []
    for index, (k, v) in enumerate(step.past):
        q = step.q[step.metadata.query_starts[index] : step.metadata.query_starts[index + 1]].double()
        repeats = config.num_heads // config.num_kv_heads
        keys, values = (t.double().repeat_interleave(repeats, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, keys) * config.scale
        if config.softcap:
            scores = config.softcap * torch.tanh(scores / config.softcap)
        at = torch.arange(len(k) - len(q), len(k))[:, None]
        seen = torch.arange(len(k)) <= at
        if config.window:
            seen &= torch.arange(len(k)) > at - config.window
        weights = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
    return torch.cat(outputs)


# A kernel is compiled for its sizes and its type, which takes seconds. Types differ in how numbers are read and written
# alone, so one configuration meets both.
@pytest.mark.parametrize("backend", [TorchPagedBackend(), CpuPagedBackend(1)], ids=lambda b: type(b).__name__)
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (GROUPED, torch.float32),
        (GROUPED, torch.bfloat16),
        (AttentionConfig(num_heads=4, num_kv_heads=4, head_dim=24, v_head_dim=16, scale=0.3), torch.float32),
        (
            AttentionConfig(num_heads=4, num_kv_heads=1, head_dim=32, v_head_dim=32, scale=0.2, window=20, softcap=3.0),
            torch.float32,
        ),
    ],
    ids=["grouped", "grouped bfloat16", "values of another size", "window and softcap"],
)
def test_a_step_of_decodes_and_chunks(
    config: AttentionConfig, backend: AttentionBackend[AttentionMetadata], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    cache = LayerCache(config, *backend.allocate(config, NUM_BLOCKS, BLOCK, dtype, torch.device("cpu")))
    for memory in (cache.k, cache.v):
        memory.fill_(math.nan)  # what other requests left behind
    decodes = [(known, 1) for known in (0, 1, 14, 15, 16, 31, 40, 100, 500)]
    chunks = [(0, 2), (0, 33), (16, 16), (45, 20)]
    step = make_step(config, cache, decodes + chunks, dtype)
    backend.store(cache, step.k, step.v, step.metadata)
    actual = backend.attend(cache, step.q, step.metadata).double()
    error = (actual - reference(step, config)).abs().max()
    assert error < TOLERANCE[dtype], error
