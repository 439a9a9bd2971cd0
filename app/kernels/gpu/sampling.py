"""From logits to tokens, one program to each request, without sorting and without asking the host.

Filters come down to one threshold: top-k, top-p and min-p each keep the logits from some value on. It is found by
counting, or adding up probabilities, above several values at once, again and again between closer ones.
A token is then drawn by a race: each that is left gets a random time, exponentially distributed with its probability
as the rate, and the first one wins (the Gumbel-max trick). Times are a hash of (seed, position, token) alone.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass
class SamplingTensors:
    """What the kernels need to know of each row: (rows,) each, (rows, vocab) where marked."""

    temperature: Tensor
    """float32; 0 is greedy."""
    top_k: Tensor
    """int32; the size of the vocabulary if off."""
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    """int64"""
    adjusts: Tensor
    """int8: whether any of the following is set."""
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    counts: Tensor
    """(rows, vocab) int16: twice a token's number in the output, plus one if it is in the prompt or the output."""
    bias: Tensor
    """(rows, vocab) float32"""

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device) -> "SamplingTensors":
        """Memory for that many rows, all of them greedy."""

        def of(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        floats = [of(torch.float32) for _ in range(6)]
        return cls(
            temperature=floats[0], top_k=of(torch.int32), top_p=floats[1], min_p=floats[2], seed=of(torch.int64),
            adjusts=of(torch.int8), presence=floats[3], frequency=floats[4], repetition=floats[5],
            counts=of(torch.int16, vocab), bias=of(torch.float32, vocab),
        )  # fmt: skip

@triton.jit
def _mix(h):
    """The finalizer of MurmurHash3 (Appleby, 2011), on uint32."""
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    h ^= h >> 16
    return h


@triton.jit
def _race_time(key_low, key_high, tokens):
    """The logarithm of an exponentially distributed number for each token."""
    h = _mix(_mix(tokens.to(tl.uint32) ^ key_low) ^ key_high)
    u = (h.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # (0, 1]
    # -log(1 - u), exact for small u as well: those are who wins.
    time = tl.where(u < 0.001, u + 0.5 * u * u, -tl.log(tl.maximum(1.0 - u, 5.9604645e-08)))
    return tl.log(time)


@triton.jit
def _measure(
    logits, low, high, pivots, largest, inv_temperature,
    COUNTS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What lies on and above each pivot: how many logits, or how much probability (not normalised).

    And the least and the greatest logit of low <= x < high.
    """
    at = tl.arange(0, BLOCK)
    above = tl.zeros([BLOCK, 8], tl.float32)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    greatest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf"))
        weight = tl.full([BLOCK], 1.0, tl.float32)
        if not COUNTS:
            weight = tl.exp((x - largest) * inv_temperature)
        above += tl.where(x[:, None] >= pivots[None, :], weight[:, None], 0.0)
        inside = (x >= low) & (x < high)
        least = tl.minimum(least, tl.where(inside, x, float("inf")))
        greatest = tl.maximum(greatest, tl.where(inside, x, float("-inf")))
    return tl.sum(above, axis=0), tl.min(least, axis=0), tl.max(greatest, axis=0)


@triton.jit
def _threshold(
    logits, low, largest, target, inv_temperature, COUNTS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The greatest value such that the logits from it on are `target` or more, by number or by probability.

    Those from `low` on are enough, and finite. A search between closer and closer bounds: there are enough logits
    from `low` on, and not enough from `high` on. It ends when all logits in between are equal.
    """
    steps = tl.arange(0, 8).to(tl.float32)
    above, least, greatest = _measure(
        logits, low, largest, tl.full([8], 0.0, tl.float32) + largest, largest, inv_temperature, COUNTS, VOCAB, BLOCK
    )
    high = largest
    searching = tl.max(above, axis=0) < target
    if not searching:
        low = largest
    while searching:
        pivots = low + (high - low) * ((steps + 1) / 9)
        above, least, greatest = _measure(
            logits, low, high, pivots, largest, inv_temperature, COUNTS, VOCAB, BLOCK
        )
        enough = above >= target
        reached = tl.max(tl.where(enough, pivots, float("-inf")), axis=0)
        missed = tl.min(tl.where(enough, float("inf"), pivots), axis=0)
        if least == greatest:
            low = least
            searching = False
        else:
            low = tl.maximum(least, reached)
            high = tl.minimum(high, missed)
        if COUNTS:
            hit = tl.max(tl.where(above == target, pivots, float("-inf")), axis=0)
            if hit > float("-inf"):
                low = hit
                searching = False
    return low


@triton.jit
def _choose(
    logits, rows, positions, temperatures, top_ks, top_ps, min_ps, seeds, counts, tokens, last_sampled,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """One request's next token. Without DRAWS the most probable one, whatever its parameters say."""
    index = tl.program_id(0)
    row = tl.load(rows + index)
    logits += index.to(tl.int64) * VOCAB
    at = tl.arange(0, BLOCK)
    if row >= 0:
        temperature, inv_temperature, threshold = 0.0, 1.0, float("-inf")
        key_low, key_high = tl.full([], 0, tl.uint32), tl.full([], 0, tl.uint32)
        if DRAWS:
            temperature = tl.load(temperatures + row)
            if temperature > 0:
                inv_temperature = 1 / temperature
                # Seed and position, which seeds each token's random number.
                seed = tl.load(seeds + row)
                position = tl.load(positions + index) + 1
                key_low = _mix(seed.to(tl.uint32) + _mix(position.to(tl.uint32) + 0x9E3779B9))
                key_high = _mix((seed >> 32).to(tl.uint32) ^ _mix(key_low + 0x7F4A7C15))
                threshold = _filter(
                    logits, inv_temperature, tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row),
                    VOCAB, BLOCK,
                )  # fmt: skip
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        best_token = tl.zeros([BLOCK], tl.int32)
        largest = tl.full([BLOCK], float("-inf"), tl.float32)
        is_number = tl.full([BLOCK], 1, tl.int32)
        for start in range(0, VOCAB, BLOCK):
            x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf"))
            is_number = tl.where(x == x, is_number, 0)
            largest = tl.maximum(largest, x)
            score = x
            if DRAWS:
                if temperature > 0:
                    score = x * inv_temperature - _race_time(key_low, key_high, start + at)
                    score = tl.where((x >= threshold) & (x > float("-inf")), score, float("-inf"))
            is_better = score > best
            best = tl.where(is_better, score, best)
            best_token = tl.where(is_better, start + at, best_token)
        winner = tl.max(best, axis=0)
        token = tl.min(tl.where(best == winner, best_token, VOCAB), axis=0)
        top = tl.max(largest, axis=0)
        is_valid = (tl.min(is_number, axis=0) == 1) & (top > float("-inf")) & (top < float("inf"))
        tl.store(tokens + index, tl.where(is_valid, token, -2))
        token = tl.where(is_valid, token, 0)
        tl.store(last_sampled + row, token)
        if DRAWS:
            # Remembered for penalties; see _adjust.
            count = tl.load(counts + row.to(tl.int64) * VOCAB + token)
            tl.store(counts + row.to(tl.int64) * VOCAB + token, tl.minimum(count + 2, 32766 + (count & 1)) | 1)


@triton.jit
def _filter(logits, inv_temperature, top_k, top_p, min_p, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The least logit that may be drawn: by top-k, then top-p of what that leaves, then min-p."""
    threshold = float("-inf")
    if (top_k < VOCAB) | (top_p < 1) | (min_p > 0):
        at = tl.arange(0, BLOCK)
        highest = tl.full([BLOCK], float("-inf"), tl.float32)
        lowest = tl.full([BLOCK], float("inf"), tl.float32)
        finite = tl.zeros([BLOCK], tl.int32)
        for start in range(0, VOCAB, BLOCK):
            x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf"))
            highest = tl.maximum(highest, x)
            is_finite = (x > float("-inf")) & (x < float("inf"))
            lowest = tl.minimum(lowest, tl.where(is_finite, x, float("inf")))
            finite += is_finite.to(tl.int32)
        largest, low = tl.max(highest, axis=0), tl.min(lowest, axis=0)
        num_finite = tl.sum(finite, axis=0)
        if (num_finite > 1) & (low < largest) & (largest < float("inf")):
            if top_k < num_finite:
                low = _threshold(logits, low, largest, top_k.to(tl.float32), inv_temperature, True, VOCAB, BLOCK)
            if top_p < 1:
                above, _least, _greatest = _measure(
                    logits, low, largest, tl.full([8], 0.0, tl.float32) + low, largest, inv_temperature, False, VOCAB,
                    BLOCK,
                )  # fmt: skip
                target = tl.max(above, axis=0) * top_p
                low = _threshold(logits, low, largest, target, inv_temperature, False, VOCAB, BLOCK)
            threshold = low
            if min_p > 0:
                threshold = tl.maximum(low, largest + tl.log(min_p) / inv_temperature)
    return threshold


def choose(
    logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingTensors, tokens: Tensor, last_sampled: Tensor,
    *, draws: bool, block: int = 1024, warps: int = 8,
) -> None:  # fmt: skip
    """Fill `tokens` (n,) int32 from logits (n, vocab) float32; -2 where a row's are not numbers.

    rows (n,) int32: each one's row in `params` and `last_sampled`, which takes the token too; -1 for padding.
    positions (n,) int32: of the last known token. Without `draws`, temperatures are taken for 0.
    """
    vocab = logits.shape[1]
    _choose[(logits.shape[0],)](
        logits, rows, positions, params.temperature, params.top_k, params.top_p, params.min_p, params.seed,
        params.counts, tokens, last_sampled, VOCAB=vocab, BLOCK=block, DRAWS=draws, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _adjust_part(
    logits, rows, adjusts, counts, bias, presence, frequency, repetition,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of one request's logits: penalties, then bias. A count is twice a token's number in the output, plus one
    for a token of the prompt or the output."""
    index = tl.program_id(0)
    row = tl.load(rows + index).to(tl.int64)
    if row >= 0:
        if tl.load(adjusts + row) != 0:
            at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            mask = at < VOCAB
            x = tl.load(logits + index.to(tl.int64) * VOCAB + at, mask=mask)
            count = tl.load(counts + row * VOCAB + at, mask=mask, other=0).to(tl.int32)
            factor = tl.load(repetition + row)
            x = tl.where((count & 1) != 0, tl.where(x > 0, x / factor, x * factor), x)
            number = (count >> 1).to(tl.float32)
            x -= tl.load(frequency + row) * number
            x -= tl.where(number > 0, tl.load(presence + row), 0.0)
            x += tl.load(bias + row * VOCAB + at, mask=mask, other=0.0)
            tl.store(logits + index.to(tl.int64) * VOCAB + at, x, mask=mask)


def adjust(logits: Tensor, rows: Tensor, params: SamplingTensors, block: int = 4096) -> None:
    """Penalties and bias, in place, for the rows of logits (n, vocab) that want any."""
    count, vocab = logits.shape
    _adjust_part[(count, triton.cdiv(vocab, block))](
        logits, rows, params.adjusts, params.counts, params.bias, params.presence, params.frequency,
        params.repetition, VOCAB=vocab, BLOCK=block, num_warps=4,
    )  # fmt: skip
