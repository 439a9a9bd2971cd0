"""What a request holds of KV memory when most layers see only a window."""

import torch

from app.attention.config import AttentionConfig
from app.attention.layer import Attention
from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import ModelRunnerOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone
from app.worker.kv_storage import bytes_of, group_layers, size_groups

BLOCK_SIZE, BUDGET, CONTEXT = 16, 512, 8192


def test_windows_hold_little_of_a_long_context() -> None:
    """As Gemma 3: five of six layers see 512 tokens."""
    shape = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "v_head_dim": 256, "scale": 0.0625}
    layers = [Attention(AttentionConfig(**shape, window=None if at % 6 == 5 else 512)) for at in range(30)]  # type: ignore[arg-type]
    groups = group_layers(layers, 2 * CONTEXT, BLOCK_SIZE, torch.bfloat16, keeps_values=True)
    assert [(len(group.layers), group.window) for group in groups] == [(25, 512), (5, None)]
    most = [group.most_blocks(BLOCK_SIZE, max_num_seqs=4, max_num_batched_tokens=BUDGET) for group in groups]
    sizes = size_groups(groups, 4 * 2 * CONTEXT // BLOCK_SIZE, most)
    pacer = ChunkPacer(1.0, BLOCK_SIZE, BUDGET)
    scheduler = Scheduler(
        KVCache(sizes, BLOCK_SIZE, BUDGET),
        pacer,
        Alone(pacer),
        max_num_seqs=4,
        max_num_batched_tokens=BUDGET,
        max_model_len=2 * CONTEXT,
    )
    request = Request("a", list(range(CONTEXT - 20)), CONTEXT - 20, SamplingParams(max_tokens=100, seed=0), 0.0)
    scheduler.add(request)
    while len(request.token_ids) < CONTEXT:
        step = scheduler.schedule()
        assert step is not None
        samples = [7] if request.num_in_flight else []
        scheduler.update(step, ModelRunnerOutput([samples]), seconds=0.01)
    held = [pool.num_used for pool in scheduler.kv.pools]
    block_bytes = [group.block_bytes for group in groups]
    now = sum(count * size for count, size in zip(held, block_bytes, strict=True))
    before = CONTEXT // BLOCK_SIZE * sum(block_bytes)
    assert held[1] == CONTEXT // BLOCK_SIZE
    assert now / before <= 0.35
    # And of what is allocated, the windows' part does not grow with the context.
    twice = size_groups(groups, 4 * 4 * CONTEXT // BLOCK_SIZE, most)
    assert bytes_of(groups, twice) - bytes_of(groups, sizes) == 4 * 2 * CONTEXT // BLOCK_SIZE * block_bytes[1]
