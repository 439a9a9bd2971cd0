"""Which experts the tokens of a step go to, in a mixture of experts (Shazeer et al., 2017)."""

from typing import NamedTuple

from torch import Tensor


class Routes(NamedTuple):
    """A pair is a token with one of its experts. Its number is `token * top_k + choice`."""

    experts: Tensor
    """(tokens, top_k) int32: those that each token has chosen, all different."""
    weights: Tensor
    """(tokens, top_k) float32: what their outputs are multiplied by."""
    counts: Tensor
    """(num_experts,) int32: how many pairs each expert has."""
    pairs: Tensor
    """int32, the pairs of one expert after the other: on a CPU (tokens * top_k,) without gaps; on a GPU (num_experts,
    tokens), of which the first `counts` of a row count, in any order."""

    @property
    def num_pairs(self) -> int:
        """Of all experts."""
        return self.experts.numel()
