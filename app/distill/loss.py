"""What is minimised: how far the student's distribution is from what is kept of the teacher's."""

import torch
from torch import Tensor

_CLOSEST = -1e-6
"""What the student gives the teacher's top tokens together is taken for this log probability at most: nearer to 0,
float32 knows nothing of what is left over."""
_NEVER = -1e4
"""The log probability of what does not count."""


def divergence(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, rest: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher's distribution to the student's, (n,) float32, in nats.

    logits (n, vocab), of the student; top_ids, top_logprobs (n, top) and rest (n,): see `Answer`. The tokens that are
    not among the top are one bucket. Of all tokens apart, the divergence would be larger; so this is a lower bound.
    """
    log_q = torch.log_softmax(logits.float(), -1).gather(1, top_ids).where(top_logprobs > _NEVER, _NEVER)
    top = (top_logprobs.exp() * (top_logprobs - log_q)).sum(-1)
    log_q_rest = torch.log(-torch.expm1(log_q.logsumexp(-1).clamp(max=_CLOSEST)))
    return top + torch.xlogy(rest, rest) - rest * log_q_rest


def restrict(numbers: Tensor, top_logprobs: Tensor, rest: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of the teacher's distribution, among some of the tokens.

    numbers (n, top): those of the top tokens among these `count`; any other number means that a token is not of them.
    What is left over is taken to be of them. Returns what `divergence` takes.
    """
    within = numbers < count
    share = ((top_logprobs.exp() * within).sum(-1) + rest).clamp(min=1e-6)
    logprobs = (top_logprobs - share.log()[:, None]).where(within, _NEVER)
    return numbers.where(within, 0), logprobs, rest / share
