"""Sampling on the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.sampling import SamplingParams
from ...core.step import NOT_A_NUMBER, NewRequest
from ...kernels.cpu.sampling import Filters, race, race_keys
from ..batch import NO_DRAFT, Entries
from ..drafts import accepted_tokens
from .rules import RowRules


@dataclass
class _Row:
    """What sampling needs to know of a row, made when the row is given to a request."""

    sampling: SamplingParams
    num_prompt_tokens: int
    output_counts: Tensor | None = None
    """(vocab,) float32: how often each token was generated; only with penalties."""
    in_text: Tensor | None = None
    """(vocab,) bool: tokens of prompt and output; only with a repetition penalty."""
    bias: tuple[Tensor, Tensor] | None = None
    """Token ids and what is added to their logits."""
    stop_token_ids: Tensor | None = None
    """Masked while the output is shorter than `min_tokens`."""
    rules: RowRules | None = None
    adjusts: bool = False
    """Whether any of the above is there, and so the row's logits are changed before sampling."""

    def count(self, token: int) -> bool:
        """Remember a token that follows the text; returns whether it was not in it before."""
        if self.output_counts is not None:
            self.output_counts[token] += 1
        if self.rules is not None:
            self.rules.text.append(token)
        if self.in_text is None or self.in_text[token]:
            return False
        self.in_text[token] = True
        return True

    def forget(self, token: int, was_new: bool) -> None:
        """Undo `count`, of the last token that was counted."""
        if self.output_counts is not None:
            self.output_counts[token] -= 1
        if self.rules is not None:
            self.rules.text.pop()
        if self.in_text is not None and was_new:
            self.in_text[token] = False


class CpuSampling:
    """See `app.worker.sampling.base.Sampling`. Logits that are elsewhere come to the CPU."""

    def __init__(
        self,
        max_num_seqs: int,
        max_entries: int,
        vocab_size: int,
        device: torch.device,
        token_ids: NDArray[np.int64] | None = None,
    ) -> None:
        """`token_ids` (vocab_size,): what has the luck of other tokens than of its own number in the vocabulary."""
        self.vocab_size = vocab_size
        self.last_sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(max_entries, dtype=torch.int64, device=device)
        self._rows: list[_Row | None] = [None] * max_num_seqs
        self._temperature, self._top_p, self._min_p = np.zeros((3, max_num_seqs), dtype=np.float32)
        self._top_k = np.zeros(max_num_seqs, dtype=np.int64)
        self._seeds = np.zeros(max_num_seqs, dtype=np.int64)
        self._token_ids = np.arange(vocab_size) if token_ids is None else token_ids
        self._masks: tuple[list[int], NDArray[np.int32]] | None = None
        self._ruled: dict[int, Tensor] = {}
        """By entry of the last step: see `ruled`."""

    def add(self, request: NewRequest) -> None:
        """See `Sampling.add`."""
        row, sampling, token_ids = request.row, request.sampling, request.token_ids
        self._temperature[row] = sampling.temperature
        self._top_k[row] = sampling.top_k or self.vocab_size
        self._top_p[row] = sampling.top_p
        self._min_p[row] = sampling.min_p
        self._seeds[row] = sampling.seed
        state = _Row(sampling, request.num_prompt_tokens)
        if sampling.presence_penalty or sampling.frequency_penalty:
            output = torch.tensor(token_ids[request.num_prompt_tokens :], dtype=torch.int64)
            state.output_counts = torch.bincount(output, minlength=self.vocab_size).float()
        if sampling.repetition_penalty != 1.0:
            state.in_text = torch.zeros(self.vocab_size, dtype=torch.bool)
            state.in_text[torch.tensor(token_ids)] = True
        if sampling.logit_bias:
            state.bias = torch.tensor(list(sampling.logit_bias)), torch.tensor(list(sampling.logit_bias.values()))
        if sampling.min_tokens and sampling.stop_token_ids:
            state.stop_token_ids = torch.tensor(list(sampling.stop_token_ids))
        if sampling.rules is not None:
            state.rules = RowRules(sampling.rules, list(token_ids), request.num_prompt_tokens)
        optional = (state.output_counts, state.in_text, state.bias, state.stop_token_ids, state.rules)
        state.adjusts = any(value is not None for value in optional)
        self._rows[row] = state

    def fields(self) -> dict[str, type[np.generic]]:
        """See `Sampling.fields`: nothing has to be sent."""
        return {}

    def write(self, entries: Entries, to: Mapping[str, NDArray[Any]]) -> None:
        """See `Sampling.write`."""

    def draws(self, entries: Entries) -> bool:  # noqa: ARG002
        """See `Sampling.draws`: `sample` finds out by itself."""
        return True

    def mask(self, at: list[int], words: NDArray[np.int32]) -> None:
        """See `Sampling.mask`."""
        self._masks = at, words

    def sample(self, logits: Tensor, entries: Entries, numbers: Mapping[str, Tensor], *, draws: bool) -> None:  # noqa: ARG002
        """See `Sampling.sample`."""
        logits = logits.cpu()
        if self._masks is not None:
            _allow(logits, *self._masks)
            self._masks = None
        self._adjust_all(logits, entries)
        # Small arrays are NumPy's, which needs a tenth of torch's time for them.
        largest, tokens = (part.numpy() for part in logits.max(dim=-1))
        if len(drawn := np.flatnonzero(self._temperature[entries.rows] > 0)):
            rows = entries.rows[drawn]
            keys = race_keys(self._seeds[rows], entries.positions[drawn])
            filters = Filters(self._top_k[rows], self._top_p[rows], self._min_p[rows])
            tokens[drawn] = race(logits.numpy(), drawn, self._token_ids, self._temperature[rows], filters, keys)
        is_number = np.isfinite(largest)  # NaN anywhere is the largest of all
        valid = np.where(is_number, tokens, 0)  # a row that has just failed may be in the next step all the same
        accepted = accepted_tokens(valid.tolist(), entries)
        rows = entries.rows[entries.starts[:-1]]
        self._count(rows, accepted)
        self.tokens[: len(tokens)] = torch.from_numpy(np.where(is_number, tokens, NOT_A_NUMBER))
        last = torch.tensor([tokens[-1] for tokens in accepted])
        self.last_sampled[torch.from_numpy(rows)] = last.to(self.last_sampled.device)

    def ruled(self, entry: int) -> Tensor | None:
        """See `Sampling.ruled`."""
        return self._ruled.get(entry)

    def _adjust_all(self, logits: Tensor, entries: Entries) -> None:
        """Change logits (n, vocab) in place where rows want it. Each entry of a row goes by the drafts before it."""
        guessed: list[tuple[_Row, int, bool]] = []
        self._ruled.clear()
        for index, row in enumerate(entries.rows):
            state = self._rows[row]
            if state is None or not state.adjusts:
                continue
            self._adjust(logits[index], state, int(entries.positions[index]) + 1)
            if state.sampling.rules is not None and state.sampling.rules.in_logprobs:
                self._ruled[index] = logits[index]
            if entries.drafts is not None and (draft := int(entries.drafts[index])) != NO_DRAFT:
                guessed.append((state, draft, state.count(draft)))
        for state, draft, was_new in reversed(guessed):
            state.forget(draft, was_new)

    def _adjust(self, logits: Tensor, state: _Row, num_tokens: int) -> None:
        """Penalties, bias, minimum length and rules: changes (vocab,) logits of one row in place."""
        sampling = state.sampling
        if state.in_text is not None:
            penalty = sampling.repetition_penalty
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits.copy_(torch.where(state.in_text, penalised, logits))
        if state.output_counts is not None:
            logits -= sampling.frequency_penalty * state.output_counts
            logits -= sampling.presence_penalty * (state.output_counts > 0)
        if state.bias is not None:
            logits.index_add_(0, *state.bias)
        if state.stop_token_ids is not None and num_tokens - state.num_prompt_tokens < sampling.min_tokens:
            logits[state.stop_token_ids] = float("-inf")
        if state.rules is not None:
            state.rules.apply(logits)

    def _count(self, rows: NDArray[np.int64], accepted: list[list[int]]) -> None:
        """Remember what was generated, for the rows with penalties."""
        for row, tokens in zip(rows, accepted, strict=True):
            state = self._rows[row]
            if state is not None and state.adjusts:
                for token in tokens:
                    state.count(token)


def _allow(logits: Tensor, indices: list[int], masks: NDArray[np.int32]) -> None:
    """Leave only allowed tokens in rows `indices` of logits (n, vocab), in place; see `Sampling.mask`."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=logits.shape[1])
    rows = torch.tensor(indices)
    logits[rows] = logits[rows].masked_fill(~torch.from_numpy(bits).bool(), float("-inf"))
