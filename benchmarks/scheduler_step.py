"""Time of the host for a step with many running requests: scheduling, batch preparation, handling of the result.

    python benchmarks/scheduler_step.py

The device is left out: steps are prepared as for a model, and answered with made-up tokens.
"""

import argparse
import statistics
import time

from common import print_table, write_result

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import KVGroup, ModelRunnerOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.fairness.alone import Alone
from app.worker.batch import InputBatch

NUM_RUNNING = 256
BLOCK_SIZE = 16
MAX_MODEL_LEN = 4096
STEPS = 300


def measure(num_waiting: int) -> dict[str, float]:
    """Median microseconds of each part of a step, with 256 running requests and `num_waiting` behind them."""
    pacer = ChunkPacer(0.05, BLOCK_SIZE, 65536)
    scheduler = Scheduler(
        KVCache([KVGroup(NUM_RUNNING * MAX_MODEL_LEN // BLOCK_SIZE)], BLOCK_SIZE, 65536),
        pacer,
        Alone(pacer),
        max_num_seqs=NUM_RUNNING,
        max_num_batched_tokens=65536,
        max_model_len=MAX_MODEL_LEN,
    )
    batch = InputBatch(NUM_RUNNING, MAX_MODEL_LEN, BLOCK_SIZE, 1)
    for index in range(NUM_RUNNING + num_waiting):
        prompt = [index % 1000, *range(100, 227)]
        sampling = SamplingParams(max_tokens=2000, seed=index)
        scheduler.add(Request(str(index), prompt, len(prompt), sampling, arrived_at=float(index)))
    parts: dict[str, list[float]] = {"schedule": [], "prepare": [], "update": []}
    for number in range(STEPS):
        times = [time.perf_counter()]
        step = scheduler.schedule()
        times.append(time.perf_counter())
        assert step is not None
        for request in step.new_requests:
            batch.add(request)
        batch.take_blocks(step)
        batch.entries(batch.prepare(step), step.drafts)
        times.append(time.perf_counter())
        scheduler.update(step, ModelRunnerOutput([[7] for _ in step.rows]), seconds=0.01)
        times.append(time.perf_counter())
        if number > 20:  # the first steps admit and prefill
            assert len(step.rows) == NUM_RUNNING
            for name, start, end in zip(parts, times, times[1:], strict=False):
                parts[name].append((end - start) * 1e6)
    return {name: statistics.median(values) for name, values in parts.items()}


def main() -> None:
    """Print and record the figures."""
    args = argparse.ArgumentParser(description=__doc__).parse_args()
    results = {}
    for num_waiting in (0, 10_000):
        parts = measure(num_waiting)
        results[f"{num_waiting}_waiting"] = {**parts, "schedule_and_prepare": parts["schedule"] + parts["prepare"]}
    rows = [(name, *parts.values()) for name, parts in results.items()]
    print_table(("microseconds", "schedule", "prepare", "update", "schedule + prepare"), rows)
    write_result(args, results)


if __name__ == "__main__":
    main()
