"""Log probabilities that are reported beside tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.sampling import Logprobs


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
