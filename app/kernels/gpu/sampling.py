"""From logits to tokens, without sorting and without asking the host.

A token is drawn by a race: each one that may be drawn gets a random time, exponentially distributed with its
probability as the rate, and the first wins (the Gumbel-max trick). Times are a hash of (seed, position, token) alone.

Filters come down to one threshold: top-k, top-p and min-p each keep the logits from some value on. Four kernels
find it:

1. `_scan`, in parts of each row: who wins without filters, and the largest logit of each 128;
2. `_bound`: a value above which there are enough logits, from the largest of each 128 alone;
3. `_gather`: the logits above it, which are few;
4. `_draw`: among these, the exact threshold by binary search over the bits of a float, and the race.

Where the few are not enough, or too many, as with flat distributions, `_draw` searches the whole row: slower, no less
exact. Greedy requests need the first kernel, and the last one to pick the largest of all parts.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


@dataclass(frozen=True)
class SamplingTensors:
    """How each of n rows of logits is to be sampled: (n,) each."""

    rows: Tensor
    """int32: a request's row in what is kept from step to step; -1 for padding."""
    positions: Tensor
    """int32: of the last known token."""
    seed: Tensor
    """int64"""
    temperature: Tensor
    """float32, as all that follow but one; 0 is greedy."""
    top_k: Tensor
    """int32; the size of the vocabulary if off."""
    top_p: Tensor
    min_p: Tensor
    adjusts: Tensor
    """int32: whether there are penalties or bias."""
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    masked: Tensor
    """int32: whether only some tokens are allowed; see `RowMemory.masks`."""
    may_not_stop: Tensor
    """int32: whether `RowMemory.stops` are not allowed."""
    drafts: Tensor
    """int32: the guess of what is sampled, which the next logits go on from; -1 for a request's last ones."""
    depths: Tensor
    """int32: number of guesses that these logits go on from; those of a request stand one behind the other."""


class RowMemory:
    """What is kept of each row from step to step, and masks of a step's logits."""

    def __init__(self, rows: int, n: int, vocab: int, device: torch.device) -> None:
        """`n`: most rows of logits in a step."""
        self.last_sampled = torch.zeros(rows, dtype=torch.int64, device=device)
        self.counts = torch.zeros(rows, vocab, dtype=torch.int16, device=device)
        """Twice a token's number in the output, plus one if it is in the prompt or the output."""
        self.bias = torch.zeros(rows, vocab, dtype=torch.float32, device=device)
        self.stops, self.masks = (
            torch.zeros(count, -(-vocab // 32), dtype=torch.int32, device=device) for count in (rows, n)
        )
        """Sets of tokens: t is in it if bit t % 32 of number t // 32 is set. `masks` (n, words): those allowed now."""


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
def _race_key(seeds, positions, index):
    """What makes the random numbers of a request's next token: 64 bits."""
    seed = tl.load(seeds + index)
    position = tl.load(positions + index) + 1
    low = _mix(seed.to(tl.uint32) + _mix(position.to(tl.uint32) + 0x9E3779B9))
    return low, _mix((seed >> 32).to(tl.uint32) ^ _mix(low + 0x7F4A7C15))


@triton.jit
def _filters(index, temperatures, top_ks, top_ps, min_ps, VOCAB: tl.constexpr):
    """Temperature, top-k, top-p and min-p of a request, and whether any of the filters is on."""
    temperature, top_k = tl.load(temperatures + index), tl.load(top_ks + index)
    top_p, min_p = tl.load(top_ps + index), tl.load(min_ps + index)
    is_on = (temperature > 0) & ((top_k < VOCAB) | (top_p < 1) | (min_p > 0))
    return temperature, top_k, top_p, min_p, is_on


@triton.jit
def _scan(
    logits, rows, positions, temperatures, top_ks, top_ps, min_ps, seeds, scores, winners, tops, sums, maxima,
    VOCAB: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """One part of one row: the race's winner and its score, the largest logit, the sum of exponentials below it."""
    index, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + index)
    if row >= 0:
        at = part * PART + tl.arange(0, PART)
        x = tl.load(logits + index.to(tl.int64) * VOCAB + at, mask=at < VOCAB, other=float("-inf"))
        # NaN is the largest of all: the row is marked by it.
        top = tl.where(tl.sum((x != x).to(tl.int32), axis=0) > 0, float("nan"), tl.max(x, axis=0))
        score = x
        if DRAWS:
            temperature, _k, _p, _m, is_filtered = _filters(index, temperatures, top_ks, top_ps, min_ps, VOCAB)
            if temperature > 0:
                low, high = _race_key(seeds, positions, index)
                score = x / temperature - _race_time(low, high, at)
                score = tl.where(x > float("-inf"), score, float("-inf"))
            if is_filtered:
                largest = tl.max(tl.reshape(x, (PART // 128, 128)), axis=1)
                group = part * (PART // 128) + tl.arange(0, PART // 128)
                tl.store(maxima + index * GROUPS + group, largest)
                base = tl.where(top == float("-inf"), 0.0, top)
                tl.store(sums + index * PARTS + part, tl.sum(tl.exp((x - base) / temperature), axis=0))
        best = tl.max(score, axis=0)
        winner = tl.min(tl.where(score == best, at, VOCAB), axis=0)
        tl.store(scores + index * PARTS + part, best)
        tl.store(winners + index * PARTS + part, winner)
        tl.store(tops + index * PARTS + part, top)


@triton.jit
def _ordered(x):
    """Floats as int32 that are in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _bound(
    rows, temperatures, top_ks, top_ps, min_ps, maxima, bounds, sizes,
    VOCAB: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A value such that enough groups have a logit above it: for top-k the k-th largest of the groups' maxima."""
    index = tl.program_id(0)
    tl.store(sizes + index, 0)
    row = tl.load(rows + index)
    if row >= 0:
        temperature, top_k, top_p, min_p, is_filtered = _filters(index, temperatures, top_ks, top_ps, min_ps, VOCAB)
        if is_filtered:
            at = tl.arange(0, BLOCK)
            largest = tl.load(maxima + index * GROUPS + at, mask=at < GROUPS, other=float("-inf"))
            bound = tl.max(largest, axis=0) + temperature * tl.log(tl.maximum(min_p, 1e-30))
            if (top_k < VOCAB) | (top_p < 1):
                wanted = tl.where(top_k < VOCAB, top_k, 128)
                keys = _ordered(largest)
                bound = float("-inf")
                if wanted < GROUPS:
                    bound = _from_ordered(_largest_enough(keys, tl.full([BLOCK], 1, tl.int64), wanted.to(tl.int64)))
            tl.store(bounds + index, bound)


@triton.jit
def _from_ordered(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _largest_enough(keys, weights, target):
    """The largest key such that the weights of the keys from it on add up to `target`: bit by bit, sign first.

    Weights are integers: their sum does not depend on their order, so neither does the result.
    """
    result = tl.full([], -2147483648, tl.int32)
    if tl.sum(tl.where(keys >= 0, weights, 0), axis=0) >= target:
        result = tl.full([], 0, tl.int32)
    step = tl.full([], 1 << 30, tl.int32)
    for _bit in range(31):
        candidate = result + step
        step = step >> 1
        if tl.sum(tl.where(keys >= candidate, weights, 0), axis=0) >= target:
            result = candidate
    return result


@triton.jit
def _gather(
    logits, rows, temperatures, top_ks, top_ps, min_ps, maxima, bounds, sizes, values, tokens,
    VOCAB: tl.constexpr, PART: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """The logits of one part of one row that are `bounds` or more, to wherever there is room in the row's list."""
    index, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + index)
    if row >= 0:
        _t, _k, _p, _m, is_filtered = _filters(index, temperatures, top_ks, top_ps, min_ps, VOCAB)
        if is_filtered:
            bound = tl.load(bounds + index)
            at = part * PART + tl.arange(0, PART)
            # Groups without any need not be read.
            largest = tl.load(maxima + index * GROUPS + at // 128)
            mask = (at < VOCAB) & (largest >= bound)
            x = tl.load(logits + index.to(tl.int64) * VOCAB + at, mask=mask, other=float("-inf"))
            taken = mask & (x >= bound) & (x > float("-inf"))
            count = tl.sum(taken.to(tl.int32), axis=0)
            if count > 0:
                start = tl.atomic_add(sizes + index, count)
                place = start + tl.cumsum(taken.to(tl.int32), axis=0) - 1
                taken &= place < CAPACITY
                tl.store(values + index * CAPACITY + place, x, mask=taken)
                tl.store(tokens + index * CAPACITY + place, at, mask=taken)


_ONE = tl.constexpr(1099511627776.0)
"""The largest probability as an integer: 2**40, so that a million of them can be added up."""


@triton.jit
def _weights(x, largest, temperature):
    """exp((x - largest) / temperature) as integers."""
    return (tl.exp((x - largest) / temperature) * _ONE).to(tl.int64)


@triton.jit
def _draw(
    logits, rows, positions, temperatures, top_ks, top_ps, min_ps, seeds, scores, winners, tops, sums, sizes, values,
    tokens, chosen,
    VOCAB: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
    DRAWS: tl.constexpr,
):  # fmt: skip
    """One row's token: the winner of all parts, or of those whom the filters leave."""
    index = tl.program_id(0)
    row = tl.load(rows + index)
    if row >= 0:
        p = tl.arange(0, BLOCK_PARTS)
        top = tl.load(tops + index * PARTS + p, mask=p < PARTS, other=float("-inf"))
        is_number = tl.sum((top != top).to(tl.int32), axis=0) == 0
        largest = tl.max(top, axis=0)
        is_valid = is_number & (largest > float("-inf")) & (largest < float("inf"))
        score = tl.load(scores + index * PARTS + p, mask=p < PARTS, other=float("-inf"))
        winner = tl.load(winners + index * PARTS + p, mask=p < PARTS, other=VOCAB)
        best = tl.max(score, axis=0)
        token = tl.min(tl.where(score == best, winner, VOCAB), axis=0)
        if DRAWS:
            temperature, top_k, top_p, min_p, is_filtered = _filters(index, temperatures, top_ks, top_ps, min_ps, VOCAB)
            if is_filtered & is_valid:
                part_sums = tl.load(sums + index * PARTS + p, mask=p < PARTS, other=0.0)
                whole = tl.sum(part_sums * tl.exp((top - largest) / temperature), axis=0)
                size = tl.load(sizes + index)
                low, high = _race_key(seeds, positions, index)
                c = tl.arange(0, CAPACITY)
                held = c < size
                x = tl.load(values + index * CAPACITY + c, mask=held, other=float("-inf"))
                ids = tl.load(tokens + index * CAPACITY + c, mask=held, other=VOCAB)
                keys = tl.where(held, _ordered(x), -2147483648)
                weights = tl.where(held, _weights(x, largest, temperature), 0)
                threshold = tl.full([], -2147483647, tl.int32)
                # All that top-k leaves are here, unless there are too many.
                is_enough = (size <= CAPACITY) & ((top_k >= VOCAB) | (size >= top_k))
                if is_enough & (top_k < VOCAB):
                    ones = tl.where(held, tl.full([CAPACITY], 1, tl.int64), 0)
                    threshold = _largest_enough(keys, ones, top_k.to(tl.int64))
                    whole = tl.sum(tl.where(keys >= threshold, weights, 0), axis=0).to(tl.float32) / _ONE
                if is_enough & (top_p < 1):
                    weights = tl.where(keys >= threshold, weights, 0)
                    target = tl.maximum((whole * top_p * _ONE).to(tl.int64), 1)
                    is_enough = tl.sum(weights, axis=0) >= target
                    threshold = tl.maximum(threshold, _largest_enough(keys, weights, target))
                if is_enough:
                    least = _ordered(largest + temperature * tl.log(tl.maximum(min_p, 1e-30)))
                    threshold = tl.maximum(threshold, least)
                    race = x / temperature - _race_time(low, high, ids)
                    race = tl.where(held & (keys >= threshold), race, float("-inf"))
                    best = tl.max(race, axis=0)
                    token = tl.min(tl.where(race == best, ids, VOCAB), axis=0)
                else:
                    token = _draw_from_all(
                        logits + index.to(tl.int64) * VOCAB, low, high, largest, temperature, top_k, top_p, min_p,
                        VOCAB, BLOCK,
                    )  # fmt: skip
        tl.store(chosen + index, tl.where(is_valid, token, -2))


@triton.jit
def _accept(chosen, rows, drafts, depths, counts, last_sampled, VOCAB: tl.constexpr, DRAWS: tl.constexpr):
    """What one request gets: the tokens behind right guesses, and one more."""
    at = tl.program_id(0)
    row = tl.load(rows + at).to(tl.int64)
    if (row >= 0) & (tl.load(depths + at) == 0):
        token = tl.load(chosen + at)
        while token == tl.load(drafts + at):
            if DRAWS:
                _remember(counts + row * VOCAB + token)
            at += 1
            token = tl.load(chosen + at)
        token = tl.maximum(token, 0)  # a row that has just failed may be in the next step all the same
        if DRAWS:
            _remember(counts + row * VOCAB + token)
        tl.store(last_sampled + row, token.to(tl.int64))


@triton.jit
def _remember(place):
    """Count a token for penalties, see `_adjust_part`."""
    count = tl.load(place).to(tl.int32)
    tl.store(place, (tl.minimum(count + 2, 32766) | 1).to(tl.int16))


@triton.jit
def _draw_from_all(
    logits, low, high, largest, temperature, top_k, top_p, min_p, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As `_draw` does it, but with all logits of a row, again and again from memory."""
    threshold = tl.full([], -2147483647, tl.int32)
    if top_k < VOCAB:
        threshold = _search_all(logits, largest, temperature, threshold, top_k.to(tl.int64), True, VOCAB, BLOCK)
    if top_p < 1:
        whole = _sum_all(logits, largest, temperature, threshold, False, VOCAB, BLOCK)
        target = tl.maximum((whole.to(tl.float32) * top_p).to(tl.int64), 1)
        threshold = _search_all(logits, largest, temperature, threshold, target, False, VOCAB, BLOCK)
    threshold = tl.maximum(threshold, _ordered(largest + temperature * tl.log(tl.maximum(min_p, 1e-30))))
    at = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    winner = tl.full([BLOCK], VOCAB, tl.int32)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf"))
        race = x / temperature - _race_time(low, high, start + at)
        race = tl.where((_ordered(x) >= threshold) & (x > float("-inf")), race, float("-inf"))
        is_better = race > best
        best = tl.where(is_better, race, best)
        winner = tl.where(is_better, start + at, winner)
    return tl.min(tl.where(best == tl.max(best, axis=0), winner, VOCAB), axis=0)


@triton.jit
def _sum_all(
    logits, largest, temperature, threshold, COUNTS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """How many logits, or how much probability, lies from a threshold on."""
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf"))
        weight = tl.full([BLOCK], 1, tl.int64)
        if not COUNTS:
            weight = _weights(x, largest, temperature)
        total += tl.where((_ordered(x) >= threshold) & (x > float("-inf")), weight, 0)
    return tl.sum(total, axis=0)


@triton.jit
def _search_all(
    logits, largest, temperature, least, target, COUNTS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As `_largest_enough`; not less than `least`."""
    result = tl.full([], -2147483648, tl.int32)
    if _sum_all(logits, largest, temperature, tl.full([], 0, tl.int32), COUNTS, VOCAB, BLOCK) >= target:
        result = tl.full([], 0, tl.int32)
    step = tl.full([], 1 << 30, tl.int32)
    for _bit in range(31):
        candidate = result + step
        step = step >> 1
        if _sum_all(logits, largest, temperature, tl.maximum(candidate, least), COUNTS, VOCAB, BLOCK) >= target:
            result = candidate
    return tl.maximum(result, least)


_PART = 4096
"""Logits that a program scans. Few, so that one row alone keeps many multiprocessors busy."""
_CAPACITY = 2048
"""Logits that are looked at closely."""


class Scratch:
    """Memory for what the kernels tell each other about `n` rows of logits."""

    def __init__(self, n: int, vocab: int, device: torch.device) -> None:
        self.parts = triton.cdiv(vocab, _PART)
        self.groups = self.parts * (_PART // 128)

        def of(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(n, *shape, dtype=dtype, device=device)

        self.scores, self.tops, self.sums = (of(torch.float32, self.parts) for _ in range(3))
        self.winners = of(torch.int32, self.parts)
        self.maxima, self.bounds, self.sizes = of(torch.float32, self.groups), of(torch.float32), of(torch.int32)
        self.values, self.tokens = of(torch.float32, _CAPACITY), of(torch.int32, _CAPACITY)


def choose(
    logits: Tensor, params: SamplingTensors, memory: RowMemory, scratch: Scratch, tokens: Tensor, *, draws: bool
) -> None:
    """Fill `tokens` (n,) int32, and `memory.last_sampled`, from logits (n, vocab) float32.

    A guess is right where it equals the token that is drawn at its place, and those before it are right. -2 stands for
    logits that are not numbers. Without `draws`, temperatures are taken for 0.
    """
    n, vocab = logits.shape
    s, grid, rows = scratch, (n, scratch.parts), params.rows
    filters = params.temperature, params.top_k, params.top_p, params.min_p
    launch(
        _scan, grid,
        logits, rows, params.positions, *filters, params.seed, s.scores, s.winners, s.tops, s.sums, s.maxima,
        VOCAB=vocab, PART=_PART, PARTS=s.parts, GROUPS=s.groups, DRAWS=draws, num_warps=8,
    )  # fmt: skip
    if draws:
        launch(
            _bound, (n,),
            rows, *filters, s.maxima, s.bounds, s.sizes,
            VOCAB=vocab, GROUPS=s.groups, BLOCK=triton.next_power_of_2(s.groups), num_warps=4,
        )  # fmt: skip
        launch(
            _gather, grid,
            logits, rows, *filters, s.maxima, s.bounds, s.sizes, s.values, s.tokens,
            VOCAB=vocab, PART=_PART, GROUPS=s.groups, CAPACITY=_CAPACITY, num_warps=8,
        )  # fmt: skip
    launch(
        _draw, (n,),
        logits, rows, params.positions, *filters, params.seed, s.scores, s.winners, s.tops, s.sums, s.sizes, s.values,
        s.tokens, tokens,
        VOCAB=vocab, PARTS=s.parts, BLOCK_PARTS=triton.next_power_of_2(s.parts), CAPACITY=_CAPACITY, BLOCK=2048,
        DRAWS=draws, num_warps=8,
    )  # fmt: skip
    launch(
        _accept, (n,),
        tokens, rows, params.drafts, params.depths, memory.counts, memory.last_sampled,
        VOCAB=vocab, DRAWS=draws, num_warps=1,
    )  # fmt: skip


@triton.jit
def _adjust_part(
    logits, rows, adjusts, masked, may_not_stop, drafts, depths, counts, bias, stops, masks, presence, frequency,
    repetition, VOCAB: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of one row of logits: penalties, by the text and the guesses that it goes on from, then bias and masks.

    A count is twice a token's number in the output, plus one for a token of the prompt or the output.
    """
    index = tl.program_id(0)
    row = tl.load(rows + index).to(tl.int64)
    if row >= 0:
        if tl.load(adjusts + index) != 0:
            at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            mask = at < VOCAB
            x = tl.load(logits + index.to(tl.int64) * VOCAB + at, mask=mask)
            count = tl.load(counts + row * VOCAB + at, mask=mask, other=0).to(tl.int32)
            for before in range(tl.load(depths + index)):
                is_draft = at == tl.load(drafts + index - 1 - before)
                count = tl.where(is_draft, tl.minimum(count + 2, 32766) | 1, count)
            factor = tl.load(repetition + index)
            x = tl.where((count & 1) != 0, tl.where(x > 0, x / factor, x * factor), x)
            number = (count >> 1).to(tl.float32)
            x -= tl.load(frequency + index) * number
            x -= tl.where(number > 0, tl.load(presence + index), 0.0)
            x += tl.load(bias + row * VOCAB + at, mask=mask, other=0.0)
            if tl.load(may_not_stop + index) != 0:
                x = tl.where(_is_in(stops + row * WORDS, at, mask), float("-inf"), x)
            if tl.load(masked + index) != 0:
                x = tl.where(_is_in(masks + index.to(tl.int64) * WORDS, at, mask), x, float("-inf"))
            tl.store(logits + index.to(tl.int64) * VOCAB + at, x, mask=mask)


@triton.jit
def _is_in(words, at, mask):
    """Which tokens are in a set of `RowMemory`."""
    return ((tl.load(words + at // 32, mask=mask, other=0) >> (at % 32)) & 1) != 0


def adjust(logits: Tensor, params: SamplingTensors, memory: RowMemory) -> None:
    """Penalties, bias and masks, in place, for those of logits (n, vocab) that want any."""
    n, vocab = logits.shape
    launch(
        _adjust_part, (n, triton.cdiv(vocab, _PART)),
        logits, params.rows, params.adjusts, params.masked, params.may_not_stop, params.drafts, params.depths,
        memory.counts, memory.bias, memory.stops, memory.masks, params.presence, params.frequency, params.repetition,
        VOCAB=vocab, WORDS=memory.masks.shape[1], BLOCK=_PART, num_warps=8,
    )  # fmt: skip
