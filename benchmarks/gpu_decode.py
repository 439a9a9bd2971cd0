"""A decode step on the GPU, compared with the limit of the GPU's memory, without HTTP and scheduler.

The floor of a step is the bytes of weights and of K/V that it reads, and of states that it reads and writes, over the
bandwidth of a copy measured in the same run (read and written bytes both count). Of experts, those count that the last
step's tokens have gone to. Steps are launched one ahead, as the engine does it. `--profile` adds the time of each kind
of kernel in a step.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_adapters, write_result
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from app.attention.layer import Attention
from app.checkpoint.folder import ModelFolder
from app.core.request import NO_ADAPTER, Extras
from app.core.sampling import SamplingParams
from app.core.step import BuiltWorker, KVGroup, NewRequest, SchedulerOutput
from app.kernels.kv import bytes_of_token
from app.layers.linear import Linear
from app.layers.moe import Router, Stacked
from app.layers.recurrent import Recurrent
from app.settings import load_settings
from app.worker.factory import build_worker


def copy_bandwidth() -> float:
    """Bytes a second, read and written: the median of some copies of a gigabyte."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target, rates = torch.empty_like(source), []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(4):
            target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        rates.append(4 * 2 * source.nbytes / begin.elapsed_time(end) * 1000)
    return statistics.median(rates)


class TouchedExperts:
    """How many experts a step's tokens go to: it keeps the counts of recorded steps, by their number of tokens.

    A step that is recorded writes to the same memory whenever it runs.
    """

    def __init__(self) -> None:
        self._counts: dict[int, list[torch.Tensor]] = defaultdict(list)
        register_module_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, _arguments: object, result: Any) -> None:
        if isinstance(module, Router):
            self._counts[len(result.experts)].append(result.counts)

    def share(self, tokens: int, layers: int) -> float:
        """Of the experts of all layers: steps that only decode are recorded last."""
        counts = torch.stack(self._counts[tokens][-layers:])
        return float((counts > 0).float().mean())


def bytes_of(layer: torch.nn.Module) -> int:
    """Of a layer's weight, with its scales."""
    return sum(tensor.nbytes for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))


def _blocks_of(row: int, count: int, group: KVGroup, block_size: int) -> list[int]:
    """A row's blocks. Of a group with a window, a row has as many as the window touches, again and again."""
    own = count if group.window is None else min(count, -(-group.window // block_size) + 2)
    return [row * own + index % own for index in range(count)]


def prefill(
    built: BuiltWorker, batch: int, args: argparse.Namespace, sampling: SamplingParams, num_adapters: int = 0
) -> float:
    """Give rows 0 to batch - 1 to requests and compute their prompts; returns seconds.

    `num_adapters`: they have so many adapters, in turn.
    """
    blocks = -(-(args.input_len + args.steps + 8) // args.block_size)
    at_once = max(1, args.max_num_batched_tokens // args.input_len)
    began = time.perf_counter()
    for first in range(0, batch, at_once):
        rows = list(range(first, min(batch, first + at_once)))
        requests = [
            NewRequest(
                row=row,
                token_ids=[(7 * row + 13 * at) % 30_000 for at in range(args.input_len)],
                num_prompt_tokens=args.input_len,
                block_ids=[_blocks_of(row, blocks, group, args.block_size) for group in built.limits.groups],
                sampling=sampling,
                extras=Extras(adapter=row % num_adapters if num_adapters else NO_ADAPTER),
            )
            for row in rows
        ]
        step = SchedulerOutput(requests, [], rows, [str(row) for row in rows], [args.input_len] * len(rows))
        built.worker.submit(step).result()
    return time.perf_counter() - began


def decode(built: BuiltWorker, batch: int, steps: int) -> list[float]:
    """Seconds of each of some steps in which all rows decode."""
    rows = list(range(batch))
    step = SchedulerOutput([], [], rows, [str(row) for row in rows], [1] * batch)
    in_flight = built.worker.submit(step)
    times, last = [], time.perf_counter()
    for _ in range(steps - 1):
        following = built.worker.submit(step)
        in_flight.result()
        in_flight = following
        now = time.perf_counter()
        times.append(now - last)
        last = now
    in_flight.result()
    return times


def profile(name: str, steps: int, work: Callable[[], object]) -> None:
    """Print how long each kind of kernel takes in a step, and how long none runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        work()
    spent: dict[str, list[float]] = defaultdict(list)
    events = [event for event in recorded.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    for event in events:
        spent[event.name[:70]].append(event.time_range.elapsed_us())
    span = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
    busy = sum(map(sum, spent.values()))
    print(f"\n{name}: {span / steps:.0f} us a step, of which {busy / steps:.0f} in kernels")
    for kernel, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:14]:
        print(f"{sum(times) / steps:9.1f} us {len(times) / steps:6.1f} x {statistics.median(times):7.1f}  {kernel}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json; weights are random")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quantization", default="auto", help="see the setting")
    parser.add_argument("--kv-dtype", default="auto", help="see the setting")
    parser.add_argument("--batch-invariant", action="store_true", help="see the setting")
    parser.add_argument("--adapters", type=int, default=0, help="beside none, so many random LoRA adapters in turn")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8, top-k 50, top-p 0.95 beside greedy")
    args = parser.parse_args()
    bandwidth, touched = copy_bandwidth(), TouchedExperts()
    settings = load_settings(
        model=str(args.model),
        load_format="dummy",
        quantization=args.quantization,
        kv_dtype=args.kv_dtype,
        batch_invariant=args.batch_invariant,
        block_size=args.block_size,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        max_loras=args.adapters or None,
        max_lora_rank=args.rank if args.adapters else None,
        lora_loading=args.adapters > 0,
    )
    built = build_worker(settings, args.model)
    if args.adapters:
        with tempfile.TemporaryDirectory() as folder:
            for slot, path in enumerate(write_adapters(args.model, Path(folder), args.adapters, args.rank).values()):
                built.worker.load_adapter(slot, str(path)).result()
    runner = built.worker
    model = runner.model  # type: ignore[attr-defined]
    weights = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    weights += sum(buffer.nbytes for layer in linears for buffer in layer.buffers(recurse=False))
    of_experts = sum(bytes_of(layer) for layer in linears if isinstance(layer, Stacked))
    num_routers = sum(isinstance(module, Router) for module in model.modules())
    if not ModelFolder.open(args.model).config.get("tie_word_embeddings", False):
        weights -= sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Embedding))
    caches = [(layer.config, layer.cache.kv.k) for layer in model.modules() if isinstance(layer, Attention)]
    tokens = args.input_len + args.steps / 2
    of_row = sum(
        min(tokens, c.window or tokens) * bytes_of_token(c.num_kv_heads, c.head_dim, c.v_head_dim, k.dtype)
        for c, k in caches
    )
    of_row += 2 * sum(module.bytes_of_slot for module in model.modules() if isinstance(module, Recurrent))
    num_blocks = built.limits.groups[0].num_blocks
    greedy = SamplingParams(max_tokens=10**6, seed=1, temperature=0.0)
    kinds = {"greedy": (greedy, 0)}
    if args.sampled:
        kinds["sampled"] = SamplingParams(max_tokens=10**6, seed=1, temperature=0.8, top_k=50, top_p=0.95), 0
    if args.adapters:
        kinds[f"greedy, {args.adapters} adapters"] = greedy, args.adapters
    rows = []
    for batch in args.batch:
        for kind, (sampling, num_adapters) in kinds.items():
            prefill_s = prefill(built, batch, args, sampling, num_adapters)
            step = statistics.median(decode(built, batch, args.steps))
            share = touched.share(batch, num_routers) if num_routers else 1.0
            floor = (weights - (1 - share) * of_experts + batch * of_row) / bandwidth
            rows.append((batch, kind, prefill_s, step * 1000, floor * 1000, floor / step))
            print(rows[-1], flush=True)
        if args.profile:
            profile(f"decode, batch {batch}", 10, partial(decode, built, batch, 10))
    if args.profile:
        profile("one prompt", 1, partial(prefill, built, 1, args, sampling, num_adapters))
    header = ("batch", "sampling", "prefill s", "step ms", "floor ms", "floor / step")
    print_table(header, rows)
    figures = {"copy_bytes_per_s": bandwidth, "startup_seconds": built.startup_seconds, "num_kv_blocks": num_blocks}
    figures |= {"gpu": torch.cuda.get_device_name()}
    of = f"{args.model.name}_adapters" if args.adapters else args.model.name
    write_result(args, figures | {"steps": [dict(zip(header, row, strict=True)) for row in rows]}, of)


if __name__ == "__main__":
    sys.exit(main())
