"""From logits to tokens.

Sampling is stateless: tokens race, each with a head start by its probability, and luck that is a hash of (seed,
position, token). The winner is distributed as the probabilities are (the Gumbel-max trick: Gumbel, 1954; Maddison et
al., "A* Sampling", 2014). Whatever else is in the batch, and however often a request was preempted, it draws the same.

To invert the cumulative distribution at one number would be simpler, but not stable: a rounding error in one
probability moves the bounds of all tokens behind it, and among thousands of improbable ones the number then hits
another. A race changes its winner only if two runners were as good as level.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.sampling import Logprobs, SamplingParams
from app.core.step import NOT_A_NUMBER

_CANDIDATES = (64, 1024)
"""Top-k and top-p look at this many most probable tokens first: sorting the whole vocabulary is slow."""


_BLOCK = 64
"""Tokens without filters race in blocks first: most of the vocabulary's luck need not be computed then."""
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def draw_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key (n,) for each (seed, position): SplitMix64 (Steele, Lea and Flood, 2014) as a hash."""
    with np.errstate(over="ignore"):
        return _mix(_mix(seeds + _GAMMA) + positions.astype(np.uint64) * _GAMMA)


def luck(keys: NDArray[np.uint64], runners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gumbel-distributed numbers (n, m), by keys (n,) and the runners' ids (n, m)."""
    with np.errstate(over="ignore"):
        mixed = _mix(keys[:, None] + (runners.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass
class RowState:
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
    adjusts: bool = False
    """Whether any of the above is there, and so the row's logits are changed before sampling."""


class Sampler:
    """Turns the logits of a step's sampling rows into tokens and log probabilities."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._rows: list[RowState | None] = [None] * max_num_seqs
        self._temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self._seeds = np.zeros(max_num_seqs, dtype=np.uint64)

    def add(self, row: int, sampling: SamplingParams, token_ids: list[int], num_prompt_tokens: int) -> None:
        """Give a row to a request, which may have generated tokens before (after a preemption)."""
        self._temperature[row] = sampling.temperature
        self._seeds[row] = sampling.seed
        state = RowState(sampling, num_prompt_tokens)
        if sampling.presence_penalty or sampling.frequency_penalty:
            output = torch.tensor(token_ids[num_prompt_tokens:], dtype=torch.int64, device=self.device)
            state.output_counts = torch.bincount(output, minlength=self.vocab_size).float()
        if sampling.repetition_penalty != 1.0:
            state.in_text = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
            state.in_text[torch.tensor(token_ids, device=self.device)] = True
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=self.device)
            state.bias = ids, torch.tensor(list(sampling.logit_bias.values()), device=self.device)
        if sampling.min_tokens and sampling.stop_token_ids:
            state.stop_token_ids = torch.tensor(list(sampling.stop_token_ids), device=self.device)
        optional = (state.output_counts, state.in_text, state.bias, state.stop_token_ids)
        state.adjusts = any(value is not None for value in optional)
        self._rows[row] = state

    def sample(self, logits: Tensor, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        """Draw a token for each row.

        logits: float32 (n, vocab), changed in place; rows, positions: (n,), the position being that of the last
        known token. Returns int64 (n,), NOT_A_NUMBER for a row without a largest logit.
        """
        for index, row in enumerate(rows):
            state = self._rows[row]
            if state is not None and state.adjusts:
                self._adjust(logits[index], state, int(positions[index]) + 1)
        temperature = self._temperature[rows]
        largest, tokens = logits.max(dim=-1)
        drawn = np.flatnonzero(temperature > 0)
        if len(drawn):
            members = self._tensor(drawn)
            scaled = logits[members] / self._tensor(temperature[drawn])[:, None]
            keys = draw_keys(self._seeds[rows[drawn]], positions[drawn] + 1)
            tokens[members] = self._draw(scaled, rows[drawn], keys)
        self._count(tokens, rows)
        # NaN anywhere is the largest of all.
        return torch.where(largest.isfinite(), tokens, NOT_A_NUMBER)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _adjust(self, logits: Tensor, state: RowState, num_tokens: int) -> None:
        """Penalties, bias and minimum length: changes (vocab,) logits of one row in place."""
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

    def _count(self, tokens: Tensor, rows: NDArray[np.int64]) -> None:
        """Remember what was generated, for the rows with penalties."""
        for index, row in enumerate(rows):
            state = self._rows[row]
            if state is None or not state.adjusts:
                continue
            if state.output_counts is not None:
                state.output_counts[tokens[index]] += 1
            if state.in_text is not None:
                state.in_text[tokens[index]] = True

    # ------------------------------------------------------------------ drawing

    def _draw(self, logits: Tensor, rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> Tensor:
        """Draw by each row's filters: (n, vocab) logits over temperature and (n,) keys to (n,) tokens.

        Rows are grouped by how many candidates their own filters need, so that how a row is computed never
        depends on its neighbours.
        """
        tokens = torch.empty(len(rows), dtype=torch.int64, device=self.device)
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            state = self._rows[row]
            assert state is not None
            groups.setdefault(self._num_candidates(state.sampling), []).append(index)
        for count, members in groups.items():
            group = torch.tensor(members, device=self.device)
            if count == 0:
                tokens[group] = _race_of_blocks(logits[group], keys[members])
            else:
                params = [self._rows[rows[index]].sampling for index in members]  # type: ignore[union-attr]
                tokens[group] = self._draw_filtered(logits[group], params, keys[members], count)
        return tokens

    def _num_candidates(self, sampling: SamplingParams) -> int:
        """How many of the most probable tokens to look at first; 0 if no filter is set."""
        if sampling.top_k:
            return next((n for n in _CANDIDATES if sampling.top_k <= n), self.vocab_size)
        return _CANDIDATES[-1] if sampling.top_p < 1.0 or sampling.min_p > 0.0 else 0

    def _draw_filtered(
        self, logits: Tensor, params: list[SamplingParams], keys: NDArray[np.uint64], count: int
    ) -> Tensor:
        """Draw among the tokens that top-k, then top-p, then min-p leave over."""
        count = min(count, self.vocab_size)
        top_k = torch.tensor([p.top_k or self.vocab_size for p in params], device=self.device)[:, None]
        top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=self.device)[:, None]
        min_p = torch.tensor([p.min_p for p in params], device=self.device)[:, None]
        values, ids = logits.topk(count, dim=-1)  # (n, count), most probable first
        in_top_k = torch.arange(count, device=self.device) < top_k
        # Probabilities are relative to what top-k leaves: all of the vocabulary if it is off.
        whole = torch.where(
            top_k[:, 0] >= self.vocab_size,
            logits.logsumexp(dim=-1),
            values.masked_fill(~in_top_k, float("-inf")).logsumexp(dim=-1),
        )
        probs = torch.exp(values - whole[:, None])
        before = probs.cumsum(dim=-1, dtype=torch.float64) - probs
        keep = in_top_k & (before < top_p) & (probs >= min_p * probs[:, :1])
        undecided = keep[:, -1] & (top_k[:, 0] > count) & (count < self.vocab_size)
        winners = _race(values.masked_fill(~keep, float("-inf")), keys, ids)
        tokens = ids.gather(1, winners[:, None])[:, 0]
        for index in torch.nonzero(undecided)[:, 0].tolist():  # flat distributions: more candidates are needed
            row = slice(index, index + 1)
            tokens[row] = self._draw_filtered(logits[row], params[row], keys[row], self.vocab_size)
        return tokens


def _race(logits: Tensor, keys: NDArray[np.uint64], runners: Tensor) -> Tensor:
    """Index (n,) of the winner among runners with logits (n, m) and ids (n, m)."""
    chances = torch.from_numpy(luck(keys, runners.cpu().numpy())).to(logits.device)
    return (logits.double() + chances).argmax(dim=-1)


def _race_of_blocks(logits: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    """Tokens (n,) drawn from the whole vocabulary, by logits (n, vocab): first a block, then one of its tokens."""
    num_rows, vocab_size = logits.shape
    num_blocks = -(-vocab_size // _BLOCK)
    padded = torch.nn.functional.pad(logits, (0, num_blocks * _BLOCK - vocab_size), value=float("-inf"))
    blocks = padded.view(num_rows, num_blocks, _BLOCK)
    # Blocks race under ids that no token has.
    ids = torch.arange(vocab_size, vocab_size + num_blocks, device=logits.device).expand(num_rows, -1)
    chosen = _race(blocks.logsumexp(dim=-1), keys, ids)
    members = blocks[torch.arange(num_rows, device=logits.device), chosen]
    ids = chosen[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    return chosen * _BLOCK + _race(members, keys, ids)


class TopLogprobs(NamedTuple):
    """Log probabilities at n positions: of the token that stands there, then of the most probable ones."""

    token_ids: Tensor
    """(n, 1 + count)"""
    logprobs: Tensor

    def to_lists(self) -> list[Logprobs]:
        """As they are sent, position by position."""
        return [Logprobs(i, v) for i, v in zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True)]


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> TopLogprobs:
    """Log probabilities of `tokens` (n,) under logits (n, vocab), each followed by the `count` most probable."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(count, dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    return TopLogprobs(torch.cat((tokens[:, None], ids), dim=1), torch.cat((chosen, values), dim=1))


def allow(logits: Tensor, indices: list[int], masks: NDArray[np.int32]) -> None:
    """Leave only allowed tokens in rows `indices` of logits (n, vocab), in place.

    masks (len(indices), words): token t is allowed if bit t % 32 of number t // 32 is set.
    """
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=logits.shape[1])
    allowed = torch.from_numpy(bits).to(logits.device).bool()
    rows = torch.tensor(indices, device=logits.device)
    logits[rows] = logits[rows].masked_fill(~allowed, float("-inf"))
