"""What a mixture of experts does on a CPU: the choice of experts, products with few rows by expert, and their sum.

No kernel's work depends on the numbers that another one computes, but for how long it takes. So steps can be recorded.
"""

import numpy as np
import torch
from torch import Tensor

from ..routes import Routes
from .kernel import constant, kernel
from .numerics import exp, from_float, to_float

_WORTH_A_THREAD = 65536
"""How many numbers an input has when several threads are faster than one."""
MOST_TOKENS = 16
"""With more tokens, an expert has so many rows that a library's product is faster."""


@kernel
def _logits(begin, end, x, weight, out):  # type: ignore[no-untyped-def]
    for row in range(begin, end):
        for expert in range(weight.shape[0]):
            total = np.float32(0)
            for i in range(x.shape[1]):
                total += to_float(x[row, i]) * to_float(weight[expert, i])
            out[row, expert] = total


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in float32, for few outputs: a row's result depends on nothing but the row."""
    out = torch.empty(len(x), len(weight), dtype=torch.float32)
    _logits(len(x), out.numel() * x.shape[1] >= _WORTH_A_THREAD, x.contiguous(), constant(weight), out)
    return out


@kernel
def _choose(begin, end, scores, normalizes, experts, weights):  # type: ignore[no-untyped-def]
    """The experts of each token with the largest scores, and their probabilities."""
    num_experts, top_k = scores.shape[1], experts.shape[1]
    is_free = np.empty(num_experts, np.uint8)
    for token in range(begin, end):
        is_free[:] = 1
        for choice in range(top_k):
            best = -1
            for expert in range(num_experts):
                if is_free[expert] and (best < 0 or scores[token, expert] > scores[token, best]):
                    best = expert
            is_free[best] = 0
            experts[token, choice] = best
        largest, total = scores[token, experts[token, 0]], np.float32(0)
        for choice in range(top_k):
            weights[token, choice] = exp(scores[token, experts[token, choice]] - largest)
        if normalizes:
            for choice in range(top_k):
                total += weights[token, choice]
        else:
            for expert in range(num_experts):
                total += exp(scores[token, expert] - largest)
        for choice in range(top_k):
            weights[token, choice] /= total


@kernel
def _sort(begin, end, experts, counts, pairs):  # type: ignore[no-untyped-def]
    """Pairs by expert, of one expert in their order. It is one task."""
    places = np.zeros(counts.shape[0], np.int64)
    for _ in range(begin, end):
        counts[:] = 0
        for token in range(experts.shape[0]):
            for choice in range(experts.shape[1]):
                counts[experts[token, choice]] += 1
        for expert in range(1, counts.shape[0]):
            places[expert] = places[expert - 1] + counts[expert - 1]
        for token in range(experts.shape[0]):
            for choice in range(experts.shape[1]):
                expert = experts[token, choice]
                pairs[places[expert]] = token * experts.shape[1] + choice
                places[expert] += 1


def route(scores: Tensor, top_k: int, normalizes: bool) -> Routes:
    """See `app.kernels.ops.route`."""
    experts = torch.empty(len(scores), top_k, dtype=torch.int32)
    weights = torch.empty(len(scores), top_k, dtype=torch.float32)
    _choose(len(scores), scores.numel() >= _WORTH_A_THREAD // top_k, scores, normalizes, experts, weights)
    return routes_of(experts, weights, scores.shape[1])


def routes_of(experts: Tensor, weights: Tensor, num_experts: int) -> Routes:
    """See `app.kernels.ops.routes_of`."""
    counts = torch.empty(num_experts, dtype=torch.int32)
    pairs = torch.empty(experts.numel(), dtype=torch.int32)
    _sort(1, False, experts, counts, pairs)
    return Routes(experts, weights, counts, pairs)


@kernel
def _grouped(begin, end, x, every, weight, bias, has_bias, counts, pairs, out):  # type: ignore[no-untyped-def]
    """Its tasks are outputs, each of all experts."""
    first = 0
    for expert in range(counts.shape[0]):
        last = first + counts[expert]
        if last > first:
            for output in range(begin, end):
                of_all = expert * out.shape[1] + output
                added = to_float(bias[of_all]) if has_bias else np.float32(0)
                for at in range(first, last):
                    row, total = pairs[at] // every, np.float32(0)
                    for i in range(x.shape[1]):
                        total += to_float(x[row, i]) * to_float(weight[of_all, i])
                    out[pairs[at], output] = from_float(total + added, out)
        first = last


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Routes) -> Tensor:
    """See `app.kernels.ops.grouped`; for few tokens."""
    out = x.new_empty(routes.num_pairs, len(weight) // len(routes.counts))
    added = x[0] if bias is None else constant(bias)
    _grouped(
        out.shape[1], True, x.contiguous(), len(out) // len(x), constant(weight), added, bias is not None,
        routes.counts, routes.pairs, out,
    )  # fmt: skip
    return out


@kernel
def _combine(begin, end, x, weights, out):  # type: ignore[no-untyped-def]
    top_k = weights.shape[1]
    total = np.empty(out.shape[1], np.float32)
    for token in range(begin, end):
        total[:] = 0
        for choice in range(top_k):
            weight = weights[token, choice]
            for i in range(out.shape[1]):
                total[i] += weight * to_float(x[token * top_k + choice, i])
        for i in range(out.shape[1]):
            out[token, i] = from_float(total[i], out)


def combine(x: Tensor, weights: Tensor) -> Tensor:
    """See `app.kernels.ops.combine`."""
    out = x.new_empty(len(weights), x.shape[1])
    _combine(len(out), x.numel() >= _WORTH_A_THREAD, x, weights, out)
    return out
