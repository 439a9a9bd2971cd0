"""Top-k, top-p and min-p on the CPU, as `app.kernels.gpu.sampling` has them.

Each of them keeps the logits of a row from some value on, so all that is wanted of them is one value. It is found
without sorting: a first bound leaves few logits over, and these are parted at pivots until one is left (Hoare,
"Algorithm 65: find", 1961), by their number for top-k and by their probability for top-p. Probabilities are added up as
integers, so that sums do not depend on their order.
"""

import math

import numpy as np

from .numerics import called, exp, inline

_ONE = np.float32(2.0**40)
"""The largest probability as an integer, so that a million of them can be added up."""
_COUNT = np.float32(0)
"""Instead of a temperature: each logit weighs 1."""
_GROUPS = 256


@inline
def lowest_kept(logits, temperature, top_k, top_p, min_p, kept):  # type: ignore[no-untyped-def]
    """The least of a row's logits (n,) that top-k, then top-p, then min-p leave over.

    `top_k` is n, `top_p` 1 and `min_p` 0 where they are off; `kept` (n,) is overwritten. Where logits are no finite
    numbers, the result means nothing.
    """
    vocab = logits.shape[0]
    largest, lowest = _largest(logits, kept), np.float32(-np.inf)
    if min_p > 0:
        lowest = largest + temperature * np.float32(math.log(max(min_p, np.float32(1e-30))))
    if top_k < vocab:
        count = _keep(logits, _bound_of_top_k(logits, top_k, kept), kept)
        kth = _reached(kept, count, np.int64(top_k), largest, _COUNT)
        lowest = max(lowest, kth)
        if top_p < 1:  # probabilities are relative to what top-k leaves
            count = _keep(logits, kth, kept)
            target = _part_of(_weight_of(kept[:count], largest, temperature), top_p)
            lowest = max(lowest, _reached(kept, count, target, largest, temperature))
    elif top_p < 1:
        whole = _weight_of(logits, largest, temperature)
        target = _part_of(whole, top_p)
        # All logits below this together weigh no more than what top-p leaves out, so none of them is needed.
        least = max(np.float64(whole - target) / vocab, 0.5) / np.float64(_ONE)
        bound = np.float64(largest) + np.float64(temperature) * (math.log(least) - 0.01)
        count = _keep(logits, np.float32(bound), kept)
        lowest = max(lowest, _reached(kept, count, target, largest, temperature))
    return lowest


@inline
def _weight(logit, largest, temperature):  # type: ignore[no-untyped-def]
    """exp((logit - largest) / temperature) as an integer."""
    if temperature == _COUNT:
        return np.int64(1)
    return np.int64(exp((logit - largest) / temperature) * _ONE)


@called
def _weight_of(logits, largest, temperature):  # type: ignore[no-untyped-def]
    weight = np.int64(0)
    for i in range(logits.shape[0]):
        weight += _weight(logits[i], largest, temperature)
    return weight


@inline
def _part_of(weight, part):  # type: ignore[no-untyped-def]
    return max(np.int64(np.float64(weight) * np.float64(part)), np.int64(1))


@called
def _keep(logits, bound, kept):  # type: ignore[no-untyped-def]
    """Write the logits from a bound on to the beginning of `kept`; returns how many."""
    count = np.int64(0)
    for i in range(logits.shape[0]):
        kept[count] = logits[i]  # no branch: it would be guessed wrong
        count += np.int64(logits[i] >= bound)
    return count


@called
def _maxima_of_groups(logits, groups, maxima):  # type: ignore[no-untyped-def]
    """The largest logit of each of so many groups. Those of a group lie apart, so that this becomes vectors."""
    for j in range(groups):
        maxima[j] = np.float32(-np.inf)
    for begin in range(0, logits.shape[0], groups):
        for j in range(min(groups, logits.shape[0] - begin)):
            x = logits[begin + j]
            maxima[j] = x if x > maxima[j] else maxima[j]


@called
def _largest(logits, maxima):  # type: ignore[no-untyped-def]
    groups = min(_GROUPS, logits.shape[0])
    _maxima_of_groups(logits, groups, maxima)
    largest = maxima[0]
    for j in range(1, groups):
        largest = max(largest, maxima[j])
    return largest


@called
def _bound_of_top_k(logits, top_k, maxima):  # type: ignore[no-untyped-def]
    """`top_k` logits or more are this or more: the k-th largest of groups' maxima. -inf if k is large."""
    groups = max(_GROUPS, 2 * top_k)  # the more, the fewer logits are beyond the bound
    if groups > logits.shape[0] // 4:
        return np.float32(-np.inf)
    _maxima_of_groups(logits, groups, maxima)
    return _reached(maxima, groups, np.int64(top_k), np.float32(0), _COUNT)


@inline
def _any_of(values, count, luck):  # type: ignore[no-untyped-def]
    """One of the first values, by a generator (Press et al., "Numerical Recipes") that always begins alike."""
    luck = np.uint32(luck * np.uint32(1664525) + np.uint32(1013904223))
    return values[np.int64(luck >> np.uint32(8)) % count], luck


@called
def _reached(values, count, target, largest, temperature):  # type: ignore[no-untyped-def]
    """The largest of the first `count` values that weighs `target` together with all above it. Overwrites them."""
    before = np.int64(0)  # what was above the values that are left
    luck = np.uint32(0)
    while count > 1:
        # The middle of three values from anywhere: at fixed places, logits that rise and then fall are the worst.
        a, luck = _any_of(values, count, luck)
        b, luck = _any_of(values, count, luck)
        c, luck = _any_of(values, count, luck)
        pivot = max(min(a, b), min(max(a, b), c))
        above, equal = np.int64(0), np.int64(0)
        for i in range(count):
            weight = _weight(values[i], largest, temperature)
            above += weight if values[i] > pivot else np.int64(0)
            equal += weight if values[i] == pivot else np.int64(0)
        is_above = before + above >= target
        if not is_above and before + above + equal >= target:
            return pivot
        left = np.int64(0)
        for i in range(count):
            x = values[i]
            values[left] = x
            left += np.int64(x > pivot if is_above else x < pivot)
        if left == 0:  # all together weigh less than the target, by rounding
            return pivot
        if not is_above:
            before += above + equal
        count = left
    return values[0]
