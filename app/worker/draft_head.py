"""Drafts by a draft head (`app.models.draft_head`), which goes on from the served model's last hidden states.

It races with the same luck as the served model, as a draft model does (`app.worker.draft_model`).
"""

from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np
import torch
from torch import Tensor

from ..attention.step import StepShape
from ..core.step import BY_MODEL, MAX_WITH_DRAFTS, NewRequest, SchedulerOutput
from ..models.draft_head import DraftHead
from .batch import Entries, InputBatch
from .drafts import accepted_tokens
from .execution import Execution
from .sampling.cpu import CpuSampling


class HeadDrafter:
    """See `app.worker.runner.Drafter`. The device is a CPU."""

    def __init__(self, head: DraftHead, execution: Execution, batch: InputBatch, max_num_seqs: int) -> None:
        """`execution`: for the head alone. `batch`: of the served model."""
        config = head.config
        self._head = head
        self._execution = execution
        self._batch = batch
        self._token_ids = head.token_ids.numpy()
        self._numbers = np.full(config.vocab_size, config.num_tokens)
        """(vocab_size,): of each token in the shortlist."""
        self._numbers[self._token_ids] = np.arange(config.num_tokens)
        self._sampling = CpuSampling(
            max_num_seqs, MAX_WITH_DRAFTS, config.num_tokens, torch.device("cpu"), self._token_ids
        )
        dtype = head.embed_tokens.weight.dtype
        self._seen = torch.zeros(max_num_seqs, config.hidden_size, dtype=dtype)
        """(rows, hidden_size): the served model's state behind which each row's last token was drawn."""
        self._last = np.zeros(max_num_seqs, dtype=np.int64)
        """(rows,): the number of that token."""
        self._is_greedy = np.zeros(max_num_seqs, dtype=np.bool_)
        """(rows,): whether the most probable token is drawn, whatever else there is: that takes a tenth of the time."""
        # What recorded work reads and writes.
        self._states = torch.zeros(MAX_WITH_DRAFTS, config.hidden_size, dtype=dtype)
        self._tokens = torch.zeros(MAX_WITH_DRAFTS, dtype=torch.int64)
        self._logits = torch.zeros(MAX_WITH_DRAFTS, config.num_tokens)

    def add(self, request: NewRequest) -> None:
        """See `Drafter`. The head guesses when the row has drawn its first token."""
        sampling = request.sampling.for_drafts
        bias = {int(self._numbers[token]): value for token, value in sampling.logit_bias.items()}
        bias.pop(self._head.config.num_tokens, None)  # of tokens that it does not know
        self._is_greedy[request.row] = sampling.temperature == 0 and not bias
        sampling = msgspec.structs.replace(sampling, logit_bias=bias)
        self._sampling.add(msgspec.structs.replace(request, sampling=sampling))

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """See `Drafter`: `see` tells all."""

    def see(self, entries: Entries, tokens: Tensor, hidden: Tensor) -> None:
        """See `Drafter`."""
        accepted = accepted_tokens(tokens.tolist(), entries)
        starts = entries.starts[:-1]
        rows, last = entries.rows[starts], starts + np.array([len(each) - 1 for each in accepted], dtype=np.int64)
        self._seen[torch.from_numpy(rows)] = hidden[torch.from_numpy(entries.logits_at[last])].to(self._seen.dtype)
        self._last[rows] = self._numbers[[max(0, each[-1]) for each in accepted]]

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """See `Drafter`."""
        wanted = {row: len(drafts) for row, drafts in step.drafts.items() if drafts[0] == BY_MODEL}
        rows = sorted(wanted, key=lambda row: -wanted[row])  # who wants few drafts stops first
        if not rows:
            return step
        self._states[: len(rows)] = self._seen[rows]
        self._tokens[: len(rows)] = torch.from_numpy(self._last[rows])
        made: dict[int, list[int]] = {row: [] for row in rows}
        for depth in range(wanted[rows[0]]):
            going_on = [row for row in rows if wanted[row] > depth]
            for row, token in zip(going_on, self._draw(np.array(going_on), depth), strict=True):
                made[row].append(token)
        return msgspec.structs.replace(step, drafts=step.drafts | made)

    def _draw(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], depth: int) -> list[int]:
        """Draw the next draft of these rows, behind `depth` others."""
        count = len(rows)
        self._execution.run(StepShape(count, count, 0), partial(self._run, count))
        if self._is_greedy[rows].all():
            drawn = self._logits[:count].argmax(dim=-1)
        else:
            places = np.arange(count + 1)
            # Of the last token that is known, and the drafts behind it, nothing is computed.
            entries = Entries(rows, self._batch.num_computed[rows] + depth, places[:-1], places[:-1], places)
            self._sampling.sample(self._logits[:count], entries, {}, draws=True)
            drawn = self._sampling.tokens[:count].clamp(min=0)
        self._tokens[:count] = drawn
        return self._token_ids[drawn.numpy()].tolist()

    def _run(self, count: int) -> None:
        """What may be recorded: the next states of the first rows, and their logits."""
        states = self._head(self._states[:count], self._tokens[:count])
        self._states[:count].copy_(states)
        self._logits[:count].copy_(self._head.compute_logits(states))

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do all that is done once."""
        for count in (1, 2):
            self._execution.run(StepShape(count, count, 0), partial(self._run, count))
