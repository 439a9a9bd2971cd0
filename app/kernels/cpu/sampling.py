"""The race of tokens that sampling is, on the CPU: the same luck as `app.kernels.gpu.sampling` draws.

A token's time is a hash of (seed, position, token), exponentially distributed with its probability as the rate, and
the first one wins (the Gumbel-max trick: Gumbel, 1954; Maddison et al., "A* Sampling", 2014).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .filters import lowest_kept
from .kernel import kernel
from .numerics import exp, inline

Uints = NDArray[np.uint32]
Floats = NDArray[np.float32]
_HEAT = 64
"""So many tokens run at a time."""


@inline
def _mix(h):  # type: ignore[no-untyped-def]
    """The finalizer of MurmurHash3 (Appleby, 2011)."""
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ (h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@inline
def _hash(token, low, high):  # type: ignore[no-untyped-def]
    return _mix(_mix(np.uint32(token) ^ low) ^ high)


@inline
def _uniform(h):  # type: ignore[no-untyped-def]
    """A hash as a number of (0, 1]."""
    return (np.float32(h) + np.float32(0.5)) * np.float32(2.3283064365386963e-10)


@inline
def _head_start(h):  # type: ignore[no-untyped-def]
    """Less the logarithm of an exponentially distributed number, made of a hash."""
    u = _uniform(h)
    # -log(1 - u), exact for small u as well: those are who wins.
    if u < np.float32(0.001):
        time = u + np.float32(0.5) * u * u
    else:
        time = -np.float32(math.log(max(np.float32(1) - u, np.float32(5.9604645e-08))))
    return -np.float32(math.log(time))


@inline
def _winner(logits, tokens, lowest, temperature, low, high):  # type: ignore[no-untyped-def]
    """Which of the runners (n,) from the lowest logit on wins; the first of them if none may run."""
    best, best_at = np.float32(-np.inf), 0
    for begin in range(0, logits.shape[0], _HEAT):
        end = min(begin + _HEAT, logits.shape[0])
        # Most are too far behind for their luck: to win, a time has to be below exp(x - best), and u is below the time.
        rivals = np.int32(0)
        for at in range(begin, end):
            x = logits[at] / temperature - best
            ahead = x if x < np.float32(0) else np.float32(0)
            can_win = _uniform(_hash(tokens[at], low, high)) <= exp(ahead) * np.float32(1.001)
            rivals |= np.int32(can_win and logits[at] >= lowest)
        if rivals:
            for at in range(begin, end):
                score = logits[at] / temperature + _head_start(_hash(tokens[at], low, high))
                if logits[at] >= lowest and score > best:
                    best, best_at = score, at
    return best_at


@kernel
def _race(begin, end, logits, rows, tokens, temperature, top_k, top_p, min_p, low, high, kept, winners):  # type: ignore[no-untyped-def]
    """A lane is a task: it has memory for filters, and takes every so many rows as there are lanes."""
    for lane in range(begin, end):
        for i in range(lane, rows.shape[0], kept.shape[0]):
            row, lowest = logits[rows[i]], np.float32(-np.inf)
            if top_k[i] < row.shape[0] or top_p[i] < 1 or min_p[i] > 0:
                lowest = lowest_kept(row, temperature[i], top_k[i], top_p[i], min_p[i], kept[lane])
            winners[i] = _winner(row, tokens, lowest, temperature[i], low[i], high[i])


class Filters(NamedTuple):
    """What tokens of each row may run."""

    top_k: NDArray[np.int64]
    """(rows,), of all runners or more if it is off."""
    top_p: Floats
    """(rows,), 1 if it is off."""
    min_p: Floats
    """(rows,), 0 if it is off."""


def no_filters(rows: int) -> Filters:
    """All tokens of so many rows may run."""
    return Filters(np.full(rows, 2**62), np.ones(rows, dtype=np.float32), np.zeros(rows, dtype=np.float32))


def race(
    logits: Floats,
    rows: NDArray[np.int64],
    tokens: NDArray[np.int64],
    temperature: Floats,
    filters: Filters,
    keys: tuple[Uints, Uints],
) -> NDArray[np.int64]:
    """Which runner wins in each of the rows (n,) of logits (rows, runners), (n,). A row without a number is won by 0.

    logits are -inf for who may not run; tokens (runners,): their ids; temperature (n,), above 0; filters of n rows;
    keys: see `race_keys`.
    """
    winners = np.empty(len(rows), dtype=np.int64)
    lanes = min(len(rows), 2 * torch.get_num_threads())
    kept = np.empty((lanes, logits.shape[1]), dtype=np.float32)
    _race(lanes, True, np.ascontiguousarray(logits), rows, tokens, temperature, *filters, *keys, kept, winners)
    return winners


def race_keys(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[Uints, Uints]:
    """What makes the luck of the token that follows each position: 64 bits, in two halves (rows,)."""
    with np.errstate(over="ignore"):
        low = mix(
            (seeds & 0xFFFFFFFF).astype(np.uint32) + mix((positions + 1).astype(np.uint32) + np.uint32(0x9E3779B9))
        )
        return low, mix((seeds >> 32).astype(np.uint32) ^ mix(low + np.uint32(0x7F4A7C15)))


def mix(h: Uints) -> Uints:
    """The finalizer of MurmurHash3, of an array."""
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return h ^ (h >> np.uint32(16))
