"""Per-tenant demand for the next step, and how the step's tokens are divided."""

from collections import Counter
from collections.abc import Iterable, Set
from math import ceil

from ..core.request import Request


class StepDemand:
    """What each tenant's running requests, and the request that is next, could use of a step."""

    def __init__(self, running: Iterable[Request]) -> None:
        self.decodes: Counter[str] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._weights: dict[str, float] = {}
        for request in running:
            self._weights[request.tenant] = request.weight
            self._rows[request.tenant] += 1
            num_tokens = request.num_missing
            if num_tokens == 1:
                self.decodes[request.tenant] += 1
            elif num_tokens:
                self.prompt_tokens[request.tenant] += num_tokens

    def add_next(self, request: Request) -> None:
        """Count the request that is next, if it can be given a row now."""
        self._weights[request.tenant] = request.weight
        self._rows[request.tenant] += 1
        self.prompt_tokens[request.tenant] += len(request.token_ids)

    def remove(self, tenants: Set[str]) -> None:
        """Leave out tenants that yield the step."""
        for tenant in tenants:
            for counts in (self.decodes, self.prompt_tokens, self._rows):
                del counts[tenant]

    def above_share(self, part: float = 1.0) -> set[str]:
        """Tenants with more than that part of their share of the requests."""
        weight, total = sum(self._weights[tenant] for tenant in self._rows), part * self._rows.total()
        return {tenant for tenant, rows in self._rows.items() if rows * weight > self._weights[tenant] * total}

    def share(self, tenants: Set[str]) -> float:
        """The part of the service that is due to these tenants, by weight."""
        return sum(self._weights[tenant] for tenant in tenants) / sum(self._weights.values())

    def allowances(self, num_tokens: int) -> dict[str, int]:
        """Most prompt tokens of each tenant, so that one's long prompts do not hold up those of others.

        Max-min fair, by weight: `num_tokens`, beside all decodes, are divided such that nobody has more than a tenant
        that wants more, too; decodes count as what a tenant has. Rounded up, and one at least. Empty if fewer than two
        tenants have prompts: then nobody is held up.
        """
        if len(self.prompt_tokens) < 2:
            return {}
        level = self._level(num_tokens)
        return {
            tenant: min(max(1, ceil(level * self._weights[tenant]) - self.decodes[tenant]), wanted)
            for tenant, wanted in self.prompt_tokens.items()
        }

    def _level(self, num_tokens: int) -> float:
        """Tokens over weight to which each tenant with prompts is filled up, from its decodes to what it wants."""
        bounds = []
        for tenant, wanted in self.prompt_tokens.items():
            weight, decodes = self._weights[tenant], self.decodes[tenant]
            bounds += [(decodes / weight, weight), ((decodes + wanted) / weight, -weight)]
        level, rate, left = 0.0, 0.0, float(num_tokens)  # tokens that a higher level would take, and that are left
        for bound, change in sorted(bounds):
            if rate > 0 and (bound - level) * rate >= left:
                return level + left / rate
            left -= (bound - level) * rate
            level, rate = bound, rate + change
        return level
