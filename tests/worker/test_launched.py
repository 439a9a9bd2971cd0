"""What a step has given reaches the rows that it was of, and no others."""

from collections.abc import Sequence

import numpy as np
import torch

from app.core.sampling import SamplingParams
from app.core.step import NewRequest, SchedulerOutput
from app.worker.batch import NO_DRAFT, Entries, InputBatch
from app.worker.runner import _Launched


class Drafter:
    """Remembers what rows were given."""

    def __init__(self) -> None:
        self.taken: dict[int, list[int]] = {}

    def add(self, request: NewRequest) -> None:
        """See `app.worker.runner.Drafter`."""

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """See `app.worker.runner.Drafter`."""
        self.taken[row] = list(tokens)

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """See `app.worker.runner.Drafter`."""
        return step


def test_a_row_that_another_request_has_got_meanwhile_learns_nothing() -> None:
    batch, drafter = InputBatch(2, 32, 4, 1), Drafter()
    request = NewRequest(
        row=0, token_ids=[1, 2], num_prompt_tokens=2, block_ids=[[0]], sampling=SamplingParams(max_tokens=9, seed=0)
    )
    for row in (0, 1):
        request.row = row
        batch.add(request)
    entries = Entries(
        rows=np.array([0, 0, 1, 1]),
        positions=np.array([1, 2, 1, 2]),
        logits_at=np.arange(4),
        order=np.array([0, 1]),
        starts=np.array([0, 2, 4]),
        drafts=np.array([5, NO_DRAFT, 7, NO_DRAFT]),
    )
    launched = _Launched(batch, batch.num_admissions.copy(), entries, 2, drafter, torch.tensor([5, 6, 7, 8]))
    batch.add(request)  # row 1
    assert launched.result().token_ids == [[5, 6], [7, 8]]
    assert drafter.taken == {0: [5, 6]}
    assert batch.num_computed.tolist() == [1, 0]
