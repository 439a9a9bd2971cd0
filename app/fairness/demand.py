"""Per-tenant demand for the next step, and how the step's tokens are divided."""

from collections import Counter
from collections.abc import Iterable, Set

from app.core.request import Request


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

        Max-min fair: each gets what it wants of `num_tokens`, but no more than its share while others want more, too.
        A tenant's decodes are counted first. Empty if fewer than two tenants have prompts: then nobody is held up.
        """
        if len(self.prompt_tokens) < 2:
            return {}
        given = {}
        wants = self.prompt_tokens + self.decodes
        weight = sum(self._weights[tenant] for tenant in wants)
        for tenant in sorted(wants, key=lambda name: wants[name] / self._weights[name]):
            given[tenant] = min(wants[tenant], int(num_tokens * self._weights[tenant] / weight))
            num_tokens -= given[tenant]
            weight -= self._weights[tenant]
        return {tenant: max(1, given[tenant] - self.decodes[tenant]) for tenant in self.prompt_tokens}
