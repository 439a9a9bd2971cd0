"""What tenants want of the next step, and what of it they get."""

from collections import Counter
from collections.abc import Set

from app.core.request import Request


class Demand:
    """Of requests that run, and of the one that is next."""

    def __init__(self) -> None:
        self.decodes: Counter[str] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._weights: dict[str, float] = {}

    def add_running(self, request: Request, num_tokens: int) -> None:
        """One that has a row and wants so many tokens; a single one is a decode's."""
        self._weights[request.tenant] = request.weight
        self._rows[request.tenant] += 1
        if num_tokens == 1:
            self.decodes[request.tenant] += 1
        elif num_tokens:
            self.prompt_tokens[request.tenant] += num_tokens

    def add_next(self, request: Request) -> None:
        """One that can be given a row now."""
        self._weights[request.tenant] = request.weight
        self._rows[request.tenant] += 1
        self.prompt_tokens[request.tenant] += len(request.token_ids)

    def remove(self, tenants: Set[str]) -> None:
        """These want nothing of this step."""
        for tenant in tenants:
            for counts in (self.decodes, self.prompt_tokens, self._rows):
                del counts[tenant]

    def beyond(self, part: float) -> set[str]:
        """Tenants with more than that part of their share of these requests."""
        weight, total = sum(self._weights[tenant] for tenant in self._rows), part * self._rows.total()
        return {tenant for tenant, rows in self._rows.items() if rows * weight > self._weights[tenant] * total}

    def share(self, tenants: Set[str]) -> float:
        """What is due to these, by weight."""
        return sum(self._weights[tenant] for tenant in tenants) / sum(self._weights.values())

    def allowances(self, num_tokens: int) -> dict[str, int]:
        """Most prompt tokens of each tenant, so that one's long prompts do not hold up those of others.

        Each gets what it wants of `num_tokens`, but no more than its share while others want more, too. Decodes have
        theirs first. Nobody is held back who is alone with prompts: then there is no entry.
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
