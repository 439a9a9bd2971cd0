"""Steps with drafts on a GPU, compared with steps without: the engine with its runner, without HTTP.

    python benchmarks/gpu_drafts.py --model FOLDER

Weights are random, and each request's tokens are forced by a bias, so that it is known which draft is right. Scripted
drafts (`--drafts` for each request) are right with the probability `--acceptance`, in every step. A `--draft-model`
makes as many, which are all right. With `--speculate` the service's own speculation runs instead, on random tokens,
where nothing repeats: then it should cost nothing. Kinds are measured in turn, round after round.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import print_table, write_result

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import BY_MODEL
from app.core.wire import GenerateCommand
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.engine.ngram import NgramProposer
from app.engine.speculation import Speculation
from app.settings import load_settings

_RIGHT, _WRONG = 7, 8


class Scripted(Speculation):
    """As many drafts in each step as it is told, right with some probability, or made by the draft model."""

    def __init__(self, num_drafts: int, acceptance: float | None, most_tokens: int) -> None:
        super().__init__(NgramProposer(), most_tokens, most_rows=most_tokens)
        self._num_drafts, self._acceptance = num_drafts, acceptance
        self._chance = random.Random(0)

    def choose(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        """See `Speculation.choose`."""
        return {request.request_id: [self._draft() for _ in range(self._num_drafts)] for request in requests}

    def _draft(self) -> int:
        if self._acceptance is None:
            return BY_MODEL
        return _RIGHT if self._chance.random() < self._acceptance else _WRONG

    def is_worth_waiting(self, requests: Sequence[Request]) -> bool:
        """See `Speculation.is_worth_waiting`."""
        return bool(requests)


def measure(
    core: EngineCore, speculation: Speculation | None, batch: int, args: argparse.Namespace
) -> tuple[float, float]:
    """The mean duration of a step in seconds, and tokens a step, of `batch` requests that all generate."""
    core.scheduler.speculation = speculation
    forced = {"temperature": 0.0, "logit_bias": {_RIGHT: 100.0}}
    for index in range(batch):
        sampling = SamplingParams(max_tokens=10**6, seed=index, **({} if args.speculate else forced))
        prompt = [(7 * index + 13 * at) % 30_000 for at in range(args.input_len)]
        core.add(
            GenerateCommand(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, arrived_at=float(index))
        )
    began = {str(index) for index in range(batch)}
    while began:
        began -= {output.request_id for output in core.step().outputs if output.token_ids}
    for _ in range(10):
        core.step()
    num_tokens, start = 0, time.perf_counter()
    for _ in range(args.steps):
        num_tokens += sum(len(output.token_ids) for output in core.step().outputs)
    seconds = (time.perf_counter() - start) / args.steps
    core.abort([str(index) for index in range(batch)])
    while core.has_work:
        core.step()
    return seconds, num_tokens / args.steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json; weights are random")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--acceptance", type=float, default=0.6)
    parser.add_argument("--draft-model", type=Path, help="likewise a folder with config.json")
    parser.add_argument("--speculate", action="store_true", help="the service's own, where nothing repeats")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    settings = load_settings(
        model=str(args.model),
        draft_model=args.draft_model and str(args.draft_model),
        load_format="dummy",
        max_model_len=8192,
        prefix_caching=False,
    )
    core, ready = build_engine(settings, args.model)
    own = core.scheduler.speculation
    rows, found = [], []
    for batch in args.batch:
        kinds = {"none": None, "drafts": own}
        if not args.speculate:
            acceptance = None if args.draft_model else args.acceptance
            kinds["drafts"] = Scripted(args.drafts, acceptance, batch * (1 + args.drafts))
        measured = [
            {kind: measure(core, speculation, batch, args) for kind, speculation in kinds.items()}
            for _ in range(args.rounds)
        ]
        steps = {kind: statistics.median(one[kind][0] for one in measured) for kind in kinds}
        tokens = {kind: statistics.median(one[kind][1] for one in measured) for kind in kinds}
        ratio = steps["drafts"] / steps["none"]
        gain = tokens["drafts"] / tokens["none"] / ratio
        rows.append((batch, steps["none"] * 1000, steps["drafts"] * 1000, ratio, tokens["drafts"] / batch, gain))
        print(rows[-1], flush=True)
        found.append({"batch": batch, "rounds": measured})
    header = ("requests", "step ms", "with drafts ms", "ratio", "tokens a request", "times the tokens")
    print_table(header, rows)
    result = {"gpu": torch.cuda.get_device_name(), "startup_seconds": ready.startup_seconds, "measured": found}
    write_result(args, result | {"steps": [dict(zip(header, row, strict=True)) for row in rows]}, args.model.name)


if __name__ == "__main__":
    sys.exit(main())
