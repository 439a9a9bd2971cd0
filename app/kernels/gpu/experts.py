"""What a mixture of experts does on a GPU beside its products: the choice of experts, and the sum of their outputs.

Nothing comes back to the host: products of experts have a fixed number of programs, enough for any choice, and find out
by themselves which expert and rows are theirs (`block_of_pairs`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Routes
from .launch import OVERLAPPING_ROWS, launch, wait_for_input

# ---------------------------------------------------------------------- for kernels of products


@triton.jit
def block_of_pairs(block, counts, pairs, EXPERTS, TOKENS, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr):
    """A block of at most BLOCK_M pairs of one expert: the expert, its pairs (BLOCK_M,), and which of them there are.

    Behind the last block there are none. BLOCK_E: a power of two, not less than EXPERTS.
    """
    e = tl.arange(0, BLOCK_E)
    count = tl.load(counts + e, mask=e < EXPERTS, other=0)
    blocks = (count + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(blocks, 0)
    expert = tl.sum((ends <= block).to(tl.int32), 0)
    is_mine = e == expert
    first = tl.sum(tl.where(is_mine, ends - blocks, 0), 0)
    rows = tl.sum(tl.where(is_mine, count, 0), 0)
    row = (block - first) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_pair = row < rows
    pair = tl.load(pairs + expert.to(tl.int64) * TOKENS + row, mask=is_pair, other=0)
    return expert.to(tl.int64), pair, is_pair


@triton.jit
def rows_of(
    block, counts, pairs, TOKENS, N, EXPERTS, EVERY, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """What a program of a product computes, whose weight has N outputs for each expert.

    These are: the weight's row with its first output; the rows of activations (BLOCK_M,), the rows of the result, and
    which of these there are; and whether there are any. A pair has row `pair // EVERY`. Without BLOCK_E there are no
    experts, and each token has a row.
    """
    if BLOCK_E > 0:
        expert, to, is_row = block_of_pairs(block, counts, pairs, EXPERTS, TOKENS, BLOCK_E, BLOCK_M)
        return tl.minimum(expert, EXPERTS - 1) * N, to // EVERY, to, is_row, (expert < EXPERTS).to(tl.int32)
    else:
        row = block * BLOCK_M + tl.arange(0, BLOCK_M)
        return tl.zeros([], tl.int64), row, row, row < TOKENS, 1


def most_blocks(routes: Routes, size: int) -> int:
    """How many blocks of at most so many pairs there can be."""
    pairs = routes.num_pairs
    touched = min(pairs, len(routes.counts))
    return touched + (pairs - touched) // size


def block_size(routes: Routes, most: int) -> int:
    """How many pairs of an expert a program takes at once: twice as many as an expert has on average."""
    return min(most, max(16, triton.next_power_of_2(2 * routes.num_pairs // len(routes.counts))))


# ---------------------------------------------------------------------- the choice


@triton.jit
def _enter(chosen, is_choice, token, choice, counts, pairs, TOKENS, TOP_K):
    """Add a token's pairs to those of its experts."""
    place = tl.atomic_add(counts + chosen, 1, mask=is_choice)
    tl.store(pairs + chosen.to(tl.int64) * TOKENS + place, token * TOP_K + choice, mask=is_choice)


@triton.jit
def _route(
    scores, experts, weights, counts, pairs, TOKENS, EXPERTS,
    TOP_K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, NORMALIZES: tl.constexpr,
    IS_ONE: tl.constexpr, OVERLAPS: tl.constexpr = False,
):  # fmt: skip
    """The experts of one token. IS_ONE: it is the only one."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    token = tl.program_id(0)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    score = tl.load(scores + token.to(tl.int64) * EXPERTS + e, mask=e < EXPERTS, other=-float("inf"))
    largest = tl.max(score, 0)
    # What is no number must not be chosen twice: there would be no room for its pairs.
    left = tl.where(e < EXPERTS, tl.where(score > -1e30, score, -1e30), -float("inf"))
    chosen = tl.zeros([BLOCK_K], tl.int32)
    best_scores = tl.full([BLOCK_K], -float("inf"), tl.float32)
    for choice in tl.static_range(TOP_K):
        highest, best = tl.max(left, 0, return_indices=True)
        best_scores = tl.where(k == choice, highest, best_scores)
        chosen = tl.where(k == choice, best, chosen)
        left = tl.where(e == best, -float("inf"), left)
    probability = tl.exp(best_scores - largest)
    if NORMALIZES:
        probability /= tl.sum(probability, 0)
    else:
        probability /= tl.sum(tl.exp(score - largest), 0)
    is_choice = k < TOP_K
    place = token.to(tl.int64) * TOP_K + k
    tl.store(experts + place, chosen, mask=is_choice)
    tl.store(weights + place, probability, mask=is_choice)
    if IS_ONE:
        tl.store(counts + e, ((e < EXPERTS) & (left == -float("inf"))).to(tl.int32), mask=e < EXPERTS)
        tl.store(pairs + chosen, k, mask=is_choice)
    else:
        _enter(chosen, is_choice, token, k, counts, pairs, TOKENS, TOP_K)


def route(scores: Tensor, top_k: int, normalizes: bool) -> Routes:
    """See `app.kernels.ops.route`."""
    tokens, num_experts = scores.shape
    routes = _empty_routes(tokens, top_k, num_experts, scores.device)
    launch(
        _route, (tokens,),
        scores.contiguous(), *routes, tokens, num_experts,
        TOP_K=top_k, BLOCK_K=triton.next_power_of_2(top_k), BLOCK_E=triton.next_power_of_2(num_experts),
        NORMALIZES=normalizes, IS_ONE=tokens == 1, overlaps=tokens <= OVERLAPPING_ROWS, num_warps=1,
    )  # fmt: skip
    return routes


def _empty_routes(tokens: int, top_k: int, num_experts: int, device: torch.device) -> Routes:
    """With counts of zero, unless there is only one token."""
    experts = torch.empty(tokens, top_k, dtype=torch.int32, device=device)
    counts = (torch.empty if tokens == 1 else torch.zeros)(num_experts, dtype=torch.int32, device=device)
    pairs = torch.empty(num_experts, tokens, dtype=torch.int32, device=device)
    return Routes(experts, torch.empty_like(experts, dtype=torch.float32), counts, pairs)


@triton.jit
def _enter_all(
    experts, counts, pairs, TOKENS, TOP_K, BLOCK_K: tl.constexpr, OVERLAPS: tl.constexpr = False
):  # fmt: skip
    """The experts of one token."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    token, k = tl.program_id(0), tl.arange(0, BLOCK_K)
    chosen = tl.load(experts + token.to(tl.int64) * TOP_K + k, mask=k < TOP_K, other=0)
    _enter(chosen, k < TOP_K, token, k, counts, pairs, TOKENS, TOP_K)


def routes_of(experts: Tensor, weights: Tensor, num_experts: int) -> Routes:
    """See `app.kernels.ops.routes_of`."""
    tokens, top_k = experts.shape
    counts = torch.zeros(num_experts, dtype=torch.int32, device=experts.device)
    pairs = torch.empty(num_experts, tokens, dtype=torch.int32, device=experts.device)
    launch(
        _enter_all, (tokens,),
        experts, counts, pairs, tokens, top_k, BLOCK_K=triton.next_power_of_2(top_k),
        overlaps=tokens <= OVERLAPPING_ROWS, num_warps=1,
    )  # fmt: skip
    return Routes(experts, weights, counts, pairs)


# ---------------------------------------------------------------------- the sum


@triton.jit
def _combine(x, weights, out, SIZE, TOP_K: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr = False):
    """BLOCK numbers of one token, added up in the order of its choices."""
    wait_for_input(OVERLAPS, LETS_NEXT=True)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        total += tl.load(weights + pair) * tl.load(x + pair * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(out + token * SIZE + at, total.to(out.dtype.element_ty), mask=at < SIZE)


def combine(x: Tensor, weights: Tensor) -> Tensor:
    """See `app.kernels.ops.combine`."""
    (tokens, top_k), size = weights.shape, x.shape[1]
    out = x.new_empty(tokens, size)
    block = min(1024, triton.next_power_of_2(size))
    launch(
        _combine, (tokens, triton.cdiv(size, block)),
        x, weights, out, size, TOP_K=top_k, BLOCK=block, overlaps=tokens <= OVERLAPPING_ROWS, num_warps=4,
    )  # fmt: skip
    return out
