"""A smaller model that makes drafts: it runs beside the served one, on the same device and in the same KV blocks.

It races with the same luck as the served model (see `app.worker.sampling.base`), at the temperature and with the
filters of each request. So both pick the same token with a probability of at least (1 - d) / (1 + d), where d is the
total variation distance of their distributions (Daliri et al., "Coupling without communication", 2024).

It computes nothing for rows without drafts. What it has not seen of a row's tokens, it computes when drafts are wanted.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from ..core.sampling import SamplingParams
from ..core.step import BY_MODEL, NewRequest, SchedulerOutput
from .runner import ModelRunner

_FEW = 4
"""So many tokens that were not seen are computed one after the other: such steps are recorded, and chunks are not."""


class DraftModel:
    """See `app.worker.runner.Drafter`."""

    def __init__(self, runner: ModelRunner, most_tokens: int) -> None:
        """`runner`: of the smaller model, whose rows have the block tables of the served model's.

        `most_tokens`: of a step.
        """
        self._runner = runner
        self._most_tokens = most_tokens
        self._new: dict[int, list[int]] = {}
        """By row: tokens that the served model has given since the row last had drafts."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request. Cached blocks may hold no K and V of this model, so it begins at the first token.

        It guesses without grammar and penalties, since it would have to forget what wrong drafts change of them.
        """
        of = request.sampling
        sampling = SamplingParams(
            max_tokens=of.max_tokens,
            seed=of.seed,
            temperature=of.temperature,
            top_k=of.top_k,
            top_p=of.top_p,
            min_p=of.min_p,
            logit_bias=of.logit_bias,
        )
        self._runner.add(msgspec.structs.replace(request, num_computed_tokens=0, sampling=sampling))
        self._new[request.row] = []

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """Learn what the served model has given a row."""
        self._new[row] += tokens

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """The step, with tokens where drafts are BY_MODEL. The rows have the blocks for them."""
        wanted = {row: len(drafts) for row, drafts in step.drafts.items() if drafts[0] == BY_MODEL}
        if not wanted:
            return step
        left = self._most_tokens
        for row in wanted:
            left -= self._catch_up(row, left)
        # Who has not seen its whole text yet gets guesses that are likely to be wrong.
        made = {row: [0] * count if self._num_unseen(row) > _FEW else [] for row, count in wanted.items()}
        ready = [row for row in wanted if not made[row]]
        while behind := [row for row in ready if self._num_unseen(row) > 1]:
            self._run(behind, [1] * len(behind))
        while rows := [row for row, count in wanted.items() if len(made[row]) < count]:
            for row, token in zip(rows, self._run(rows, [1] * len(rows)), strict=True):
                made[row].append(max(0, token))
        return msgspec.structs.replace(step, drafts=step.drafts | made)

    def _catch_up(self, row: int, most: int) -> int:
        """Take in the tokens that the row was given. What was computed for wrong drafts is computed again.

        Returns how many tokens were computed, `most` at most: a step should not take much longer for a long prompt.
        """
        batch = self._runner.batch
        batch.token_ids[row] = np.concatenate([batch.token_ids[row], np.array(self._new[row], dtype=np.int64)])
        self._new[row] = []
        known = batch.num_known[row] = len(batch.token_ids[row])
        batch.num_computed[row] = min(batch.num_computed[row], known - 1)
        count = min(self._num_unseen(row) - 1, most) if self._num_unseen(row) > _FEW else 0
        if count > 0:
            self._run([row], [count])
        return count

    def _num_unseen(self, row: int) -> int:
        """Known tokens that are not computed."""
        return int(self._runner.batch.num_known[row] - self._runner.batch.num_computed[row])

    def _run(self, rows: list[int], counts: list[int]) -> list[int]:
        """Compute so many tokens of each row; returns what follows, for rows whose known tokens are all computed."""
        step = SchedulerOutput([], [], rows, [str(row) for row in rows], counts)
        return [tokens[0] for tokens in self._runner.run(step).token_ids if tokens]
