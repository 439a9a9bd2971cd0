"""The worker's memory of running requests, and the making of a step's input from it.

Everything about requests lives in arrays indexed by row, so that preparing a step is a few array operations,
whatever the number of requests.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.core.sampling import SamplingParams
from app.core.step import NewRequest, SchedulerOutput

Ints = NDArray[np.int64]


@dataclass
class StepInput:
    """One step in the order of the forward pass: decodes (one token each) by length, then chunks of prompts."""

    order: Ints
    """(requests,): index into the step's `rows` of each request."""
    rows: Ints
    """(requests,)"""
    input_ids: Ints
    """(tokens,); meaningless where `input_is_sampled`."""
    input_is_sampled: NDArray[np.bool_]
    """(tokens,): whether a token is what its row sampled last, which only the device may know."""
    token_rows: Ints
    """(tokens,): row of each token."""
    positions: Ints
    """(tokens,)"""
    slot_mapping: Ints
    """(tokens,): where each token's K/V goes."""
    block_tables: NDArray[np.int32]
    """(requests, blocks of the longest)"""
    query_starts: Ints
    """(requests + 1,)"""
    seq_lens: Ints
    """(requests,)"""
    num_decodes: int
    samples: NDArray[np.bool_]
    """(requests,): whether the request's last token of this step is followed by a sampled one."""


class PromptTargets(NamedTuple):
    """Prompt tokens of one request whose logprobs are wanted, and predicted by this step's chunk."""

    order: int
    """Index into the step's `rows`."""
    logits_at: Ints
    """Tokens of the step that predict them."""
    token_ids: Ints
    num_logprobs: int


class InputBatch:
    """What the worker knows of each row."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.block_table = np.zeros((max_num_seqs, -(-max_model_len // block_size) + 1), dtype=np.int32)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_known = np.zeros(max_num_seqs, dtype=np.int64)
        """Tokens that came with the request; later positions hold what was sampled here."""
        self.num_prompt = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt_logprobs = np.zeros(max_num_seqs, dtype=np.int64)
        self.token_ids: list[Ints] = [np.zeros(0, dtype=np.int64)] * max_num_seqs
        self.sampling: list[SamplingParams | None] = [None] * max_num_seqs

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        row = request.row
        self.token_ids[row] = np.array(request.token_ids, dtype=np.int64)
        self.num_known[row] = len(request.token_ids)
        self.num_prompt[row] = request.num_prompt_tokens
        self.num_prompt_logprobs[row] = request.num_prompt_logprobs
        self.num_computed[row] = request.num_computed_tokens
        self.sampling[row] = request.sampling
        self.num_blocks[row] = 0
        self._append_blocks(row, request.block_ids)

    def _append_blocks(self, row: int, block_ids: list[int]) -> None:
        start = self.num_blocks[row]
        self.block_table[row, start : start + len(block_ids)] = block_ids
        self.num_blocks[row] = start + len(block_ids)

    def prepare(self, step: SchedulerOutput) -> StepInput:
        """Take in a step's changes, and count its tokens as computed."""
        for request in step.new_requests:
            self.add(request)
        for row, block_ids in step.new_blocks:
            self._append_blocks(row, block_ids)

        counts = np.array(step.num_scheduled_tokens, dtype=np.int64)
        rows = np.array(step.rows, dtype=np.int64)
        order = np.lexsort((self.num_computed[rows], counts > 1))
        counts, rows = counts[order], rows[order]
        starts = self.num_computed[rows]
        seq_lens = starts + counts
        query_starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=query_starts[1:])

        token_rows = np.repeat(rows, counts)
        positions = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - starts, counts)
        slots = self.block_table[token_rows, positions // self.block_size] * self.block_size
        num_decodes = int((counts == 1).sum())
        step_input = StepInput(
            order=order,
            rows=rows,
            input_ids=self._known_tokens(rows, starts, seq_lens, query_starts),
            input_is_sampled=positions >= self.num_known[token_rows],
            token_rows=token_rows,
            positions=positions,
            slot_mapping=slots + positions % self.block_size,
            block_tables=self.block_table[rows, : -(-int(seq_lens.max()) // self.block_size)],
            query_starts=query_starts,
            seq_lens=seq_lens,
            num_decodes=num_decodes,
            samples=seq_lens >= self.num_known[rows],
        )
        self.num_computed[rows] = seq_lens
        return step_input

    def _known_tokens(self, rows: Ints, starts: Ints, seq_lens: Ints, query_starts: Ints) -> Ints:
        """Input ids of the step where they came with the requests, 0 elsewhere."""
        input_ids = np.zeros(query_starts[-1], dtype=np.int64)
        for index in np.flatnonzero(starts < self.num_known[rows]):  # prompts only: few in any step
            chunk = self.token_ids[rows[index]][starts[index] : seq_lens[index]]
            input_ids[query_starts[index] : query_starts[index + 1]] = chunk
        return input_ids

    def prompt_targets(self, batch: StepInput) -> list[PromptTargets]:
        """For each request that wants logprobs of its prompt, what this step tells of them."""
        targets = []
        for index, row in enumerate(batch.rows):
            sampling = self.sampling[row]
            if sampling is None or sampling.prompt_logprobs is None:
                continue
            # The logits at a position predict the next one: the prompt's last has none to predict.
            start, end = int(batch.query_starts[index]), int(batch.query_starts[index + 1])
            offset = int(batch.positions[start])
            first = start + max(0, int(self.num_prompt_logprobs[row]) - offset)
            end = min(end, start + int(self.num_prompt[row]) - 1 - offset)
            if first < end:
                token_ids = self.token_ids[row][offset + first - start + 1 : offset + end - start + 1]
                logits_at = np.arange(first, end)
                targets.append(PromptTargets(int(batch.order[index]), logits_at, token_ids, sampling.prompt_logprobs))
        return targets
