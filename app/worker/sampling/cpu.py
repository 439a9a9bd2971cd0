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
from ...kernels.cpu.sampling import race, race_keys
from ..batch import NO_DRAFT, Entries
from ..drafts import accepted_tokens
from .rules import RowRules

_CANDIDATES = (64, 1024)
"""Top-k and top-p look at this many most probable tokens first: sorting the whole vocabulary is slow."""
_ONE = 2.0**40
"""The largest probability as an integer, so that sums do not depend on their order."""


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
        self._temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self._seeds = np.zeros(max_num_seqs, dtype=np.int64)
        self._token_ids = np.arange(vocab_size) if token_ids is None else token_ids
        self._masks: tuple[list[int], NDArray[np.int32]] | None = None
        self._ruled: dict[int, Tensor] = {}
        """By entry of the last step: see `ruled`."""

    def add(self, request: NewRequest) -> None:
        """See `Sampling.add`."""
        row, sampling, token_ids = request.row, request.sampling, request.token_ids
        self._temperature[row] = sampling.temperature
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
        drawn = np.flatnonzero(self._temperature[entries.rows] > 0)
        if len(drawn):
            tokens[drawn] = self._draw(logits, entries, drawn).numpy()
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

    # ------------------------------------------------------------------ drawing

    def _draw(self, logits: Tensor, entries: Entries, drawn: NDArray[np.int64]) -> Tensor:
        """Draw for entries `drawn` by their rows' filters, from logits (n, vocab): (drawn,) tokens.

        They are grouped by how many candidates their own filters need, so that how an entry is computed never
        depends on its neighbours.
        """
        tokens = torch.empty(len(drawn), dtype=torch.int64)
        groups: dict[int, list[int]] = {}
        for index, entry in enumerate(drawn):
            state = self._rows[entries.rows[entry]]
            assert state is not None
            groups.setdefault(self._num_candidates(state.sampling), []).append(index)
        for count, members in groups.items():
            rows, positions = entries.rows[drawn[members]], entries.positions[drawn[members]]
            keys = race_keys(self._seeds[rows], positions)
            temperature = self._temperature[rows]
            group = logits[torch.from_numpy(drawn[members])]
            if count == 0:
                winners = race(group.numpy(), self._token_ids[None], temperature, keys)
                tokens[members] = torch.from_numpy(winners)
            else:
                params = [state.sampling for row in rows if (state := self._rows[row])]
                tokens[members] = self._draw_filtered(group, params, temperature, keys, count)
        return tokens

    def _num_candidates(self, sampling: SamplingParams) -> int:
        """How many of the most probable tokens to look at first; 0 if no filter is set."""
        if sampling.top_k:
            return next((n for n in _CANDIDATES if sampling.top_k <= n), self.vocab_size)
        return _CANDIDATES[-1] if sampling.top_p < 1.0 or sampling.min_p > 0.0 else 0

    def _draw_filtered(
        self,
        logits: Tensor,
        params: list[SamplingParams],
        temperature: NDArray[np.float32],
        keys: tuple[NDArray[np.uint32], NDArray[np.uint32]],
        count: int,
    ) -> Tensor:
        """Draw among the tokens that top-k, then top-p, then min-p leave over.

        As on the GPU, each filter keeps the logits from some value on, and probabilities are added up as integers.
        """
        count = min(count, self.vocab_size)
        heat = torch.from_numpy(temperature)[:, None]
        top_k = torch.tensor([p.top_k or self.vocab_size for p in params])[:, None]
        top_p = torch.tensor([p.top_p for p in params], dtype=torch.float32)[:, None]
        min_p = torch.tensor([p.min_p for p in params], dtype=torch.float32)[:, None]
        values, ids = logits.topk(count, dim=-1)  # (n, count), most probable first
        largest = values[:, :1]
        kth = values.gather(1, (top_k.clamp(max=count) - 1))
        keep = (top_k >= self.vocab_size) | (values >= kth)
        weights = (((values - largest) / heat).exp() * _ONE).long() * keep
        # Probabilities are relative to what top-k leaves: all of the vocabulary if it is off.
        everything = ((logits - largest) / heat).exp().sum(dim=-1, keepdim=True)
        whole = torch.where(top_k >= self.vocab_size, everything, weights.sum(dim=-1, keepdim=True).float() / _ONE)
        target = (whole * top_p * _ONE).long().clamp(min=1)
        sums = weights.cumsum(dim=-1)
        nucleus = values.gather(1, (sums < target).sum(dim=-1, keepdim=True).clamp(max=count - 1))
        keep &= (top_p >= 1.0) | (values >= nucleus)
        keep &= values >= largest + heat * min_p.clamp(min=1e-30).log()
        undecided = keep[:, -1] & (count < self.vocab_size)
        runners = self._token_ids[ids.numpy()]
        winners = race(values.masked_fill(~keep, float("-inf")).numpy(), runners, temperature, keys)
        tokens = ids.gather(1, torch.from_numpy(winners)[:, None])[:, 0]
        for index in torch.nonzero(undecided)[:, 0].tolist():  # flat distributions: more candidates are needed
            row = slice(index, index + 1)
            some = keys[0][row], keys[1][row]
            tokens[row] = self._draw_filtered(logits[row], params[row], temperature[row], some, self.vocab_size)
        return tokens


def _allow(logits: Tensor, indices: list[int], masks: NDArray[np.int32]) -> None:
    """Leave only allowed tokens in rows `indices` of logits (n, vocab), in place; see `Sampling.mask`."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=logits.shape[1])
    rows = torch.tensor(indices)
    logits[rows] = logits[rows].masked_fill(~torch.from_numpy(bits).bool(), float("-inf"))
