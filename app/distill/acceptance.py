"""How often a student guesses the token that the teacher will draw, as the service would find it.

The service samples by a race whose luck is a function of (seed, position, token), and a draft races with the same luck
at the request's own temperature (docs/architecture.md#stateless-sampling). So along an answer, which the teacher has
drawn with a seed, a draft is right where the student's race has the same winner.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.cpu.sampling import race, race_keys
from .answers import Answer

MOST_DRAFTS = 8
Matches = list[bool]
"""Of each token of an answer: whether the student draws the same one behind what precedes it."""


def matches(answer: Answer, logits: Tensor, other_luck: int = 0) -> Matches:
    """Where a student with these logits (n, vocab) draws the answer's n tokens. `other_luck` changes the seed."""
    question = answer.question
    if not question.temperature:
        drawn = logits.argmax(-1).cpu()
    else:
        count, vocab_size = logits.shape
        positions = len(question.prompt) - 1 + np.arange(count)  # of the tokens that are followed by the answer's
        keys = race_keys(np.full(count, question.seed ^ other_luck), positions)
        heat = np.full(count, question.temperature, dtype=np.float32)
        drawn = torch.from_numpy(race(logits.float().cpu().numpy(), np.arange(vocab_size)[None], heat, keys))
    return (drawn == torch.tensor(answer.tokens)).tolist()


@dataclass(frozen=True)
class Acceptance:
    """What matches along several answers come to."""

    share: float
    """Of all tokens, those where the student draws what the teacher draws."""
    first_drafts: list[float]
    """Chance that the first draft is right, the first two, ... the first eight."""
    tokens_a_step: list[float]
    """Tokens that a step gives on average, if it has up to 1, 2, ... 8 drafts."""

    @classmethod
    def of(cls, answers: Sequence[Matches]) -> "Acceptance":
        """Count. Drafts of a step are right up to the first one that is not, which the teacher's own token replaces."""
        runs = [_runs(each) for each in answers]
        starts = [run for each in runs for run in each]
        depths = range(1, MOST_DRAFTS + 1)
        return cls(
            share=float(np.mean([run > 0 for run in starts])),
            first_drafts=[float(np.mean([run >= depth for run in starts])) for depth in depths],
            tokens_a_step=[len(starts) / sum(_steps(each, depth) for each in runs) for depth in depths],
        )

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def _runs(answer: Matches) -> list[int]:
    """At each token of an answer: how many drafts from there on are right."""
    runs = [0] * (len(answer) + 1)
    for index in reversed(range(len(answer))):
        runs[index] = runs[index + 1] + 1 if answer[index] else 0
    return runs[:-1]


def _steps(runs: Sequence[int], num_drafts: int) -> int:
    """Steps that an answer takes: each gives the drafts that are right, and one token more."""
    steps = index = 0
    while index < len(runs):
        index += min(runs[index], num_drafts) + 1
        steps += 1
    return steps
