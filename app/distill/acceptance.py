"""How often a student or a head guesses the token that the teacher will draw, as the service would find it.

The service samples by a race whose luck is a function of (seed, position, token), and a draft races with the same luck
at the request's own temperature (docs/architecture.md#stateless-sampling). So along an answer, which the teacher has
drawn with a seed, a draft is right where the student's race has the same winner.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.cpu.sampling import no_filters, race, race_keys
from .answers import Answer

MOST_DRAFTS = 8
Runs = list[int]
"""At each token of an answer: how many drafts from there on are right, if a step begins there."""


def draw(
    logits: Tensor, answers: Sequence[Answer], numbers: NDArray[np.int64], token_ids: NDArray[np.int64], other_luck: int
) -> NDArray[np.int64]:
    """What logits (n, runners) draw at token `numbers` (n,) of the n answers: token ids, (n,).

    token_ids (runners,): what the logits are of. `other_luck` changes the seeds.
    """
    heat = np.array([answer.question.temperature for answer in answers], dtype=np.float32)
    seeds = np.array([answer.question.seed ^ other_luck for answer in answers], dtype=np.int64)
    lengths = np.array([len(answer.question.prompt) for answer in answers], dtype=np.int64)
    drawn = logits.argmax(-1).cpu().numpy()
    if len(at := np.flatnonzero(heat)):
        keys = race_keys(seeds[at], (lengths + numbers)[at] - 1)  # of the positions before
        drawn[at] = race(logits.float().cpu().numpy(), at, token_ids, heat[at], no_filters(len(at)), keys)
    return token_ids[drawn]


def matches(answer: Answer, logits: Tensor, other_luck: int = 0) -> list[bool]:
    """Where a student with these logits (n, vocab) draws the answer's n tokens, each behind those before it."""
    count, vocab_size = logits.shape
    drawn = draw(logits, [answer] * count, np.arange(count), np.arange(vocab_size), other_luck)
    matching: list[bool] = (drawn == np.array(answer.tokens)).tolist()
    return matching


def runs_of(matching: Sequence[bool]) -> Runs:
    """The runs of a student, whose drafts are what it draws behind the same text."""
    runs = [0] * (len(matching) + 1)
    for index in reversed(range(len(matching))):
        runs[index] = runs[index + 1] + 1 if matching[index] else 0
    return runs[:-1]


@dataclass(frozen=True)
class Acceptance:
    """What matches along several answers come to."""

    share: float
    """Of all tokens, those where the first draft of a step is what the teacher draws."""
    first_drafts: list[float]
    """Chance that the first draft is right, the first two, ... the first eight."""
    tokens_a_step: list[float]
    """Tokens that a step gives on average, if it has up to 1, 2, ... 8 drafts."""

    @classmethod
    def of(cls, runs: Sequence[Runs]) -> "Acceptance":
        """Count. Drafts of a step are right up to the first one that is not, which the teacher's own token replaces."""
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


def _steps(runs: Runs, num_drafts: int) -> int:
    """Steps that an answer takes: each gives the drafts that are right, and one token more."""
    steps = index = 0
    while index < len(runs):
        index += min(runs[index], num_drafts) + 1
        steps += 1
    return steps
