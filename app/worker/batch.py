"""The worker's memory of running requests, and the making of a step's input from it.

Everything about requests lives in arrays indexed by row, so that preparing a step is a few array operations,
whatever the number of requests.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..attention.step import Ints, StepInput
from ..core.media import Run
from ..core.request import NO_ADAPTER
from ..core.step import NewRequest, SchedulerOutput


@dataclass(frozen=True)
class Entries:
    """The positions of a step behind which a token is sampled: a row's last one, and before it those of its drafts."""

    rows: Ints
    """(entries,): all of a row's stand one behind the other, in the order of their positions."""
    positions: Ints
    """(entries,): of the last known token."""
    logits_at: Ints
    """(entries,): the step's token whose logits say what follows."""
    order: Ints
    """(requests,): index into the rows of the `SchedulerOutput` of each request that samples."""
    starts: Ints
    """(requests + 1,): where each request's entries begin, and their number."""
    drafts: Ints | None = None
    """(entries,): the guess of what is sampled, NO_DRAFT for a request's last entry; None if nobody has drafts."""

    @property
    def depths(self) -> Ints:
        """(entries,): the number of drafts before each, of its row."""
        return np.arange(len(self)) - np.repeat(self.starts[:-1], self.starts[1:] - self.starts[:-1])

    def __len__(self) -> int:
        return len(self.rows)


class PromptTargets(NamedTuple):
    """Prompt tokens of one request whose logprobs are wanted, and predicted by this step's chunk."""

    order: int
    """Index into the rows of the `SchedulerOutput`."""
    logits_at: Ints
    """Tokens of the step that predict them."""
    token_ids: Ints
    num_logprobs: int


class BlockChanges(NamedTuple):
    """What a step changes in the block tables."""

    places: Ints
    """(changes,): row * blocks of a row + index."""
    values: list[Ints]
    """(changes,) for each KV group."""


NO_LOGPROBS = -1
NO_DRAFT = -1
_NOTHING: Ints = np.zeros(0, dtype=np.int64)


class InputBatch:
    """What the worker knows of each row."""

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        num_groups: int,
        tables_of: "InputBatch | None" = None,
        sees_ahead: bool = False,
    ) -> None:
        """`tables_of`: a batch of the same size, whose block tables are this one's, too.

        `sees_ahead`: whether tokens of an image see each other.
        """
        self.max_model_len = max_model_len
        self.block_size = block_size
        shape = (num_groups, max_num_seqs, -(-max_model_len // block_size) + 1)
        self.block_tables: NDArray[np.int32] = tables_of.block_tables if tables_of else np.zeros(shape, dtype=np.int32)
        """(groups, rows, blocks)"""
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_admissions = np.zeros(max_num_seqs, dtype=np.int64)
        """How many requests have had each row so far."""
        self.num_known = np.zeros(max_num_seqs, dtype=np.int64)
        """Tokens that came with the request; later positions hold what was sampled here."""
        self.num_prompt = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        """Wanted beside each sampled token."""
        self.num_prompt_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        """Wanted beside each token of the prompt."""
        self.first_prompt_logprob = np.zeros(max_num_seqs, dtype=np.int64)
        """Prompt logprobs before this one were reported earlier."""
        self.token_ids: list[Ints] = [_NOTHING] * max_num_seqs
        self.adapters = np.full(max_num_seqs, NO_ADAPTER, dtype=np.int64)
        """The slot of each row's adapter."""
        self._sees_ahead = sees_ahead
        self._runs: list[list[Run]] = [[]] * max_num_seqs
        """Where tokens of images stand, if they see each other."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        row = request.row
        self.token_ids[row] = np.array(request.token_ids, dtype=np.int64)
        self.num_known[row] = len(request.token_ids)
        self.num_prompt[row] = request.num_prompt_tokens
        self.num_computed[row] = request.num_computed_tokens
        wanted, of_prompt = request.sampling.logprobs, request.sampling.prompt_logprobs
        self.num_logprobs[row] = NO_LOGPROBS if wanted is None else wanted
        self.num_prompt_logprobs[row] = NO_LOGPROBS if of_prompt is None else of_prompt
        self.first_prompt_logprob[row] = request.num_prompt_logprobs
        self.adapters[row] = request.extras.adapter
        if self._sees_ahead:
            self._runs[row] = [run for one in request.extras.placed for run in one.runs]
        self.num_blocks[row] = 0
        self.num_admissions[row] += 1

    def take_blocks(self, step: SchedulerOutput) -> BlockChanges:
        """Append the blocks that rows got in this step to their tables."""
        new = [(request.row, request.block_ids) for request in step.new_requests] + step.new_blocks
        places, values = [], []
        for row, block_ids in new:
            if not block_ids or not block_ids[0]:
                continue
            start = int(self.num_blocks[row])
            end = self.num_blocks[row] = start + len(block_ids[0])
            self.block_tables[:, row, start:end] = block_ids
            places.append(np.arange(start, end) + row * self.block_tables.shape[2])
            values.append(self.block_tables[:, row, start:end])
        if not places:
            return BlockChanges(_NOTHING, [_NOTHING] * len(self.block_tables))
        return BlockChanges(np.concatenate(places), list(np.concatenate(values, axis=1)))

    def prepare(self, step: SchedulerOutput) -> StepInput:
        """Take in a step's requests, whose blocks have been taken, and count its tokens as computed, but for drafts."""
        counts = np.array(step.num_scheduled_tokens, dtype=np.int64)
        rows = np.array(step.rows, dtype=np.int64)
        order = np.lexsort((self.num_computed[rows], (counts > 1) & (not step.drafts)))
        rows, counts = rows[order], counts[order]
        starts = self.num_computed[rows]
        self.num_computed[rows] += 1 if step.drafts else counts
        if step.drafts:  # every token is a decode
            drafts = np.array([draft for row in rows.tolist() for draft in (NO_DRAFT, *step.drafts.get(row, ()))])
            firsts: Ints = counts.cumsum() - counts
            starts = np.repeat(starts - firsts, counts) + np.arange(len(drafts))
            rows, order = np.repeat(rows, counts), np.repeat(order, counts)
            counts = np.ones_like(order)
        seq_lens = starts + counts
        num_decodes = int(np.count_nonzero(counts == 1))
        query_starts, token_rows, positions = np.arange(len(rows) + 1), rows, starts
        if num_decodes < len(rows):
            np.cumsum(counts, out=query_starts[1:])
            token_rows = np.repeat(rows, counts)
            positions = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - starts, counts)
        blocks, offsets = np.divmod(positions, self.block_size)
        input_is_sampled = positions >= self.num_known[token_rows]
        input_ids = self._known_tokens(rows, starts, seq_lens, query_starts)
        if step.drafts:
            input_ids = np.where(drafts == NO_DRAFT, input_ids, drafts)
            input_is_sampled &= drafts == NO_DRAFT
        return StepInput(
            order=order,
            rows=rows,
            input_ids=input_ids,
            input_is_sampled=input_is_sampled,
            token_rows=token_rows,
            positions=positions,
            slot_mappings=[
                table[token_rows, blocks].astype(np.int64) * self.block_size + offsets for table in self.block_tables
            ],
            query_starts=query_starts,
            seq_lens=seq_lens,
            num_decodes=num_decodes,
            block_size=self.block_size,
            snapshots=step.snapshots,
            adapters=self.adapters[token_rows] if (self.adapters[rows] != NO_ADAPTER).any() else None,
            ends=self._ends(rows, starts, query_starts) if self._sees_ahead else None,
        )

    def _ends(self, rows: Ints, starts: Ints, query_starts: Ints) -> Ints | None:
        """See `StepInput.ends`. starts (requests,): the position of each request's first token."""
        ends: Ints = np.zeros(query_starts[-1], dtype=np.int64)
        for index, row in enumerate(rows.tolist()):
            runs = self._runs[row]
            if not runs or starts[index] >= runs[-1].end:
                continue
            first, offset = int(query_starts[index]), int(query_starts[index] - starts[index])
            for run in runs:
                ends[
                    max(first, run.start + offset) : max(first, min(int(query_starts[index + 1]), run.end + offset))
                ] = run.end
        return ends if ends.any() else None

    def padding(self) -> StepInput:
        """A step of nobody."""
        nothing = [_NOTHING] * len(self.block_tables)
        none = np.zeros(0, dtype=np.bool_)
        starts = np.zeros(1, dtype=np.int64)
        empty = _NOTHING
        return StepInput(empty, empty, empty, none, empty, empty, nothing, starts, empty, 0, self.block_size)

    def _known_tokens(self, rows: Ints, starts: Ints, seq_lens: Ints, query_starts: Ints) -> Ints:
        """Input ids of the step where they came with the requests, 0 elsewhere."""
        input_ids = np.zeros(query_starts[-1], dtype=np.int64)
        for index in np.flatnonzero(starts < self.num_known[rows]):  # prompts only: few in any step
            chunk = self.token_ids[rows[index]][starts[index] : seq_lens[index]]
            input_ids[query_starts[index] : query_starts[index] + len(chunk)] = chunk
        return input_ids

    def entries(self, batch: StepInput, drafts: dict[int, list[int]]) -> Entries:
        """Where the step samples; `drafts` are the step's."""
        samples = np.flatnonzero(batch.seq_lens >= self.num_known[batch.rows])
        if not drafts:
            rows, last = batch.rows[samples], batch.query_starts[1:][samples] - 1
            return Entries(rows, batch.seq_lens[samples] - 1, last, batch.order[samples], np.arange(len(rows) + 1))
        rows = batch.rows[samples]  # each is one token
        ends = np.flatnonzero(np.append(rows[1:] != rows[:-1], True)) + 1
        return Entries(
            rows=rows,
            positions=batch.positions[samples],
            logits_at=samples,
            order=batch.order[samples[ends - 1]],
            starts=np.append(0, ends),
            drafts=np.array([draft for row in rows[ends - 1].tolist() for draft in (*drafts.get(row, ()), NO_DRAFT)]),
        )

    def prompt_targets(self, batch: StepInput) -> list[PromptTargets]:
        """For each request that wants logprobs of its prompt, what this step tells of them."""
        targets = []
        for index in np.flatnonzero(self.num_prompt_logprobs[batch.rows] != NO_LOGPROBS):
            row = batch.rows[index]
            # The logits at a position predict the next one: the prompt's last has none to predict.
            start, end = int(batch.query_starts[index]), int(batch.query_starts[index + 1])
            offset = int(batch.positions[start])
            first = start + max(0, int(self.first_prompt_logprob[row]) - offset)
            end = min(end, start + int(self.num_prompt[row]) - 1 - offset)
            if first < end:
                token_ids = self.token_ids[row][offset + first - start + 1 : offset + end - start + 1]
                logits_at = np.arange(first, end)
                count = int(self.num_prompt_logprobs[row])
                targets.append(PromptTargets(int(batch.order[index]), logits_at, token_ids, count))
        return targets


def no_entries() -> Entries:
    """Of a step that samples nothing."""
    return Entries(_NOTHING, _NOTHING, _NOTHING, _NOTHING, np.zeros(1, dtype=np.int64))
