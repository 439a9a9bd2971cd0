"""Steps that a tenant with most of the requests yields to the prompts of others.

A batch full of one tenant's decodes can take as long as a step may take, so that next to it there is no time for
anybody's prompt. Such a tenant then yields some of the steps, as many as are due to the others by weight.
"""

from collections.abc import Iterable

from ..core.request import Request
from .demand import StepDemand
from .policy import Pacer

_RECOVERY = 0.4
"""Credit regained in each step in which nobody had to yield, as a fraction of the others' share.

An occasional tenant therefore gets its first yield step at once."""
_NEARLY = 0.8
"""A tenant with this part of its share of the requests needs nobody to yield for it."""
_LITTLE = 0.5
"""Part of a step's time that others' prompts must be left, or else a step is yielded to them."""
_FIRST_TOKENS = 64
"""Prompt tokens of the first yield step."""
_LONGER = 1.5
"""How much longer a yield step may take than others: a prompt that is cut up takes longer than a whole one."""


class YieldSteps:
    """Decides which steps are yielded, and how many prompt tokens they have."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._credit = 1.0  # of the others, in steps
        self._share_of_others = 0.5  # when a step was last due to them
        self.prompt_tokens = min(_FIRST_TOKENS, pacer.max_tokens)
        """Most prompt tokens of a yield step."""

    def choose(self, demand: StepDemand, waiting: Iterable[Request]) -> set[str]:
        """The tenants that yield the next step. `waiting`: requests that could be in it.

        Never the same one twice in a row, since the others' share is less than a whole step.
        """
        most = demand.above_share()
        others = demand.prompt_tokens.keys() - demand.above_share(_NEARLY)
        if not others or not self._leave_little(most, demand, waiting):
            self._credit = min(1.0, self._credit + _RECOVERY * self._share_of_others)
            return set()
        self._share_of_others = demand.share(others)
        self._credit = min(1.0, self._credit + self._share_of_others)
        if self._credit < 1.0:
            return set()
        self._credit = 0.0
        return most

    def _leave_little(self, tenants: set[str], demand: StepDemand, waiting: Iterable[Request]) -> bool:
        """Whether what these tenants could compute in the step takes most of its time."""
        num_decodes = sum(demand.decodes[name] for name in tenants)
        prompt_tokens = sum(demand.prompt_tokens[name] for name in tenants)
        prompt_tokens += sum(len(request.token_ids) for request in waiting if request.tenant in tenants)
        return self._pacer.seconds(num_decodes, prompt_tokens) > _LITTLE * self._pacer.target

    def observe(self, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step without decodes, if it took too long, or was as large as a yield step may be."""
        allowed = _LONGER * max(self._pacer.target, self._pacer.seconds(1, 0))
        if seconds > allowed or prompt_tokens >= self.prompt_tokens:
            fitting = int(prompt_tokens * allowed / max(seconds, 1e-6))
            self.prompt_tokens = min(max(fitting, self._pacer.min_tokens), self._pacer.max_tokens)
