"""The race of tokens that sampling is, on the CPU: the same luck as `app.kernels.gpu.sampling` draws.

A token's time is a hash of (seed, position, token), exponentially distributed with its probability as the rate, and
the first one wins (the Gumbel-max trick: Gumbel, 1954; Maddison et al., "A* Sampling", 2014).
"""

import math

import numpy as np
from numpy.typing import NDArray

from .kernel import kernel
from .numerics import inline

Uints = NDArray[np.uint32]
Floats = NDArray[np.float32]


@inline
def _mix(h):  # type: ignore[no-untyped-def]
    """The finalizer of MurmurHash3 (Appleby, 2011)."""
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ (h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@inline
def _head_start(h):  # type: ignore[no-untyped-def]
    """Less the logarithm of an exponentially distributed number, made of a hash."""
    u = (np.float32(h) + np.float32(0.5)) * np.float32(2.3283064365386963e-10)  # (0, 1]
    # -log(1 - u), exact for small u as well: those are who wins.
    if u < np.float32(0.001):
        time = u + np.float32(0.5) * u * u
    else:
        time = -np.float32(math.log(max(np.float32(1) - u, np.float32(5.9604645e-08))))
    return -np.float32(math.log(time))


@inline
def _winner(logits, tokens, temperature, low, high):  # type: ignore[no-untyped-def]
    """Which of the runners (n,) wins; the first of them if none may run."""
    best, best_at = np.float32(-np.inf), 0
    for at in range(logits.shape[0]):
        x = logits[at] / temperature
        h = _mix(_mix(np.uint32(tokens[at]) ^ low) ^ high)
        # Most are too far behind for any luck: a head start is less than 23, and one above 2 is rare.
        if x + np.float32(23) > best and (x + np.float32(2) > best or h < np.uint32(0x30000000)):
            score = x + _head_start(h)
            if score > best:
                best, best_at = score, at
    return best_at


@kernel
def _race(begin, end, logits, tokens, temperature, low, high, winners):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        runners = tokens[np.int64(row) % tokens.shape[0]]
        winners[row] = _winner(logits[row], runners, temperature[row], low[row], high[row])


def race(
    logits: Floats, tokens: NDArray[np.int64], temperature: Floats, keys: tuple[Uints, Uints]
) -> NDArray[np.int64]:
    """Which runner wins in each row, (rows,).

    logits (rows, runners), -inf for who may not run; tokens: their ids, (rows, runners), or (1, runners) if all rows
    have the same; temperature (rows,), above 0; keys: see `race_keys`.
    """
    winners = np.empty(len(logits), dtype=np.int64)
    _race(len(logits), True, np.ascontiguousarray(logits), tokens, temperature, *keys, winners)
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
