"""A smaller model that makes drafts: it runs beside the served one, on the same device and in the same KV blocks.

It races with the same luck as the served model (see `app.worker.sampling.base`), at the temperature and with the
filters of each request. So both pick the same token with a probability of at least (1 - d) / (1 + d), where d is the
total variation distance of their distributions (Daliri et al., "Coupling without communication", 2024).

It computes nothing for rows without drafts. What it has not seen of a row's tokens, it computes when drafts are wanted.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from torch import Tensor

from ..core.request import NO_EXTRAS
from ..core.step import BY_MODEL, NewRequest, SchedulerOutput, StepHandle
from .batch import Entries
from .runner import ModelRunner

_FEW = 4
"""So many tokens that were not seen are computed one after the other where such steps are recorded, and chunks are not.
"""


class DraftModel:
    """See `app.worker.runner.Drafter`."""

    def __init__(self, runner: ModelRunner, num_tokens: int, most_tokens: int) -> None:
        """`runner`: of the smaller model, whose rows have the block tables of the served model's.

        `num_tokens`: those that both models have. `most_tokens`: of a step.
        """
        self._runner = runner
        self._num_tokens = num_tokens
        self._few = 0 if runner.execution.step_sizes else _FEW
        self._most_tokens = most_tokens
        self._new: dict[int, list[int]] = {}
        """By row: tokens that the served model has given since the row last had drafts."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request. Cached blocks may hold no K and V of this model, so it begins at the first token.

        It guesses without the request's adapter, which is the served model's.
        """
        sampling, known = request.sampling.for_drafts, range(self._num_tokens)
        bias = {token: value for token, value in sampling.logit_bias.items() if token in known}
        self._runner.add(
            msgspec.structs.replace(
                request,
                token_ids=[self._known(token) for token in request.token_ids],
                num_computed_tokens=0,
                sampling=msgspec.structs.replace(sampling, logit_bias=bias),
                extras=NO_EXTRAS,
            )
        )
        self._new[request.row] = []

    def _known(self, token: int) -> int:
        """A token that both models have; it stands for one that only one of them has, or that is no token."""
        return token if 0 <= token < self._num_tokens else 0

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """Learn what the served model has given a row."""
        self._new[row] += map(self._known, tokens)

    def see(self, entries: Entries, tokens: Tensor, hidden: Tensor) -> None:
        """See `Drafter`: it needs tokens only, and not at once."""

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """The step, with tokens where drafts are BY_MODEL. The rows have the blocks for them."""
        wanted = {row: len(drafts) for row, drafts in step.drafts.items() if drafts[0] == BY_MODEL}
        if not wanted:
            return step
        launched = []
        if counts := self._counts_at_once(wanted):
            launched.append(self._launch(counts))
        ready = [row for row in wanted if self._num_unseen(row) <= self._few]
        while rows := [row for row in ready if 1 - self._num_unseen(row) < wanted[row]]:
            launched.append(self._launch(dict.fromkeys(rows, 1)))
        # Who has not seen its whole text yet gets guesses that are likely to be wrong.
        made = {row: [] if row in ready else [0] * count for row, count in wanted.items()}
        for rows, tokens in launched:  # only now is anything waited for: each step goes on from the one before
            for row, sampled in zip(rows, tokens.result().token_ids, strict=True):
                made[row] += map(self._known, sampled)
        return msgspec.structs.replace(step, drafts=step.drafts | made)

    def _counts_at_once(self, rows: Iterable[int]) -> dict[int, int]:
        """How many tokens to take in with one step, of rows that have too many to take in one after the other."""
        left, counts = self._most_tokens, {}
        for row in rows:
            self._take_in(row)
            unseen = self._num_unseen(row)
            if unseen > self._few and left:
                counts[row] = min(unseen, left)
                left -= counts[row]
        return counts

    def _take_in(self, row: int) -> None:
        """Append the tokens that the row was given. What was computed for wrong drafts will be computed again."""
        batch = self._runner.batch
        batch.token_ids[row] = np.concatenate([batch.token_ids[row], np.array(self._new[row], dtype=np.int64)])
        self._new[row] = []
        known = batch.num_known[row] = len(batch.token_ids[row])
        batch.num_computed[row] = min(batch.num_computed[row], known - 1)

    def _num_unseen(self, row: int) -> int:
        """Known tokens that are not computed; with drafts, less than one."""
        return int(self._runner.batch.num_known[row] - self._runner.batch.num_computed[row])

    def _launch(self, counts: dict[int, int]) -> tuple[list[int], StepHandle]:
        """Compute so many tokens of each row. A row whose known tokens are then all computed gets a draft."""
        rows = list(counts)
        step = SchedulerOutput([], [], rows, [str(row) for row in rows], list(counts.values()))
        return rows, self._runner.launch(step)
