"""A decode step on the CPU, recorded and not, compared with reading the weights once, without HTTP and scheduler."""

import argparse
import statistics
from functools import partial

import torch
from common import print_table, write_result
from gpu_decode import decode, prefill

from app.checkpoint.source import find_model
from app.core.sampling import SamplingParams
from app.settings import load_settings
from app.worker.execution import Eager
from app.worker.factory import build_worker
from app.worker.taped import Taped


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="as for the service; default: the embedded one")
    parser.add_argument("--load-format", default="auto", help="see the setting; dummy: a config.json is enough")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", nargs="+", default=["auto"], help="see the setting")
    parser.add_argument("--kv-dtype", default="auto", help="see the setting")
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8, top-k 50, top-p 0.95 beside greedy")
    args = parser.parse_args()
    args.block_size, args.max_num_batched_tokens = 16, 512
    asked = [SamplingParams(max_tokens=args.steps, seed=1, temperature=0.0)]
    if args.sampled:
        asked.append(SamplingParams(max_tokens=args.steps, seed=1, temperature=0.8, top_k=50, top_p=0.95))
    rows, results = [], []
    for quantization in args.quantization:
        given = {"model": args.model} if args.model else {}
        settings = load_settings(
            device="cpu",
            quantization=quantization,
            load_format=args.load_format,
            kv_dtype=args.kv_dtype,
            max_model_len=args.max_model_len,
            block_size=16,
            max_num_batched_tokens=512,
            **given,
        )
        built = build_worker(settings, find_model(settings.model, needs_weights=args.load_format != "dummy"))
        execution = built.worker.execution
        assert isinstance(execution, Taped)
        ways = {"recorded": execution.run, "not recorded": partial(Eager.run, execution)}
        for sampling in asked:
            for batch in args.batch:
                times = {way: [] for way in ways}
                for _ in range(args.rounds):
                    for way, of_way in times.items():
                        execution.run = ways[way]
                        prefill(built, batch, args, sampling)
                        of_way += decode(built, batch, args.steps)[2:]
                ms = {way: 1000 * statistics.median(seconds) for way, seconds in times.items()}
                kind = f"{quantization}, {'greedy' if sampling.temperature == 0 else 'sampled'}"
                rows.append([kind, batch, *(f"{value:.2f}" for value in ms.values())])
                results.append({"weights": kind, "batch": batch, **ms})
    print_table(["weights", "batch", "ms a step, recorded", "not recorded"], rows)
    write_result(args, {"threads": torch.get_num_threads(), "steps": results})


if __name__ == "__main__":
    main()
