"""What each tenant holds of the batch, against what it is due by its weight."""

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from app.core.request import Request


@dataclass(frozen=True)
class Demand:
    """What tenants want of a step."""

    rows: Counter[str] = field(default_factory=Counter)
    """Requests that have one."""
    decodes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Counter[str] = field(default_factory=Counter)

    def add(self, tenant: str, num_tokens: int) -> None:
        """Take account of a running request that wants so many tokens: one of them is a decode's."""
        self.rows[tenant] += 1
        if num_tokens == 1:
            self.decodes[tenant] += 1
        elif num_tokens:
            self.prompt_tokens[tenant] += num_tokens

    def without(self, tenants: Set[str]) -> "Demand":
        """What the others want."""
        kept = ({name: counts[name] for name in counts if name not in tenants} for counts in vars(self).values())
        return Demand(*map(Counter[str], kept))


class Shares:
    """Of rows and of blocks: a tenant's part is that of which it holds more."""

    def __init__(self, num_rows: int, num_blocks: int) -> None:
        self.num_rows = num_rows
        self._num_blocks = num_blocks
        self._weights: dict[str, float] = {}
        self._rows: Counter[str] = Counter()
        self._blocks: Counter[str] = Counter()
        self.exceeded: set[str] = set()
        """Tenants that hold more than their share."""

    def measure(self, running: Iterable[Request], following: Request | None) -> None:
        """Take account of the running requests, and of the one that is next."""
        self._rows, self._blocks = Counter(), Counter()
        self._weights = {following.tenant: following.weight} if following else {}
        for request in running:
            self._weights[request.tenant] = request.weight
            self._rows[request.tenant] += 1
            self._blocks[request.tenant] += len(request.block_table)
        self.exceeded = {tenant for tenant in self._weights if not self._is_within(tenant, 0, 0)}

    def leave(self, tenant: str, num_blocks: int) -> bool:
        """Whether its share leaves a tenant one more row and so many blocks."""
        return self._is_within(tenant, 1, num_blocks)

    def _is_within(self, tenant: str, more_rows: int, more_blocks: int) -> bool:
        rows = (self._rows[tenant] + more_rows) / self.num_rows
        blocks = (self._blocks[tenant] + more_blocks) / self._num_blocks
        return max(rows, blocks) <= self._weights[tenant] / sum(self._weights.values())

    def exceeding(self, demand: Demand) -> set[str]:
        """Tenants with more than their share of the rows; all were there to be measured."""
        weight = sum(self._weights[tenant] for tenant in {*demand.rows, *demand.prompt_tokens})
        total = demand.rows.total()
        return {tenant for tenant, rows in demand.rows.items() if rows * weight > self._weights[tenant] * total}

    def allowances(self, num_tokens: int, demand: Demand) -> dict[str, int]:
        """Most prompt tokens of each tenant, so that one's long prompts do not hold up those of others.

        Each gets what it wants of `num_tokens`, but no more than its share while others want more, too. Decodes have
        theirs first. Nobody is held back who is alone with prompts: then there is no entry.
        """
        if len(demand.prompt_tokens) < 2:
            return {}
        given = {}
        wants = demand.prompt_tokens + demand.decodes
        weight = sum(self._weights[tenant] for tenant in wants)
        for tenant in sorted(wants, key=lambda name: wants[name] / self._weights[name]):
            given[tenant] = min(wants[tenant], int(num_tokens * self._weights[tenant] / weight))
            num_tokens -= given[tenant]
            weight -= self._weights[tenant]
        return {tenant: max(1, given[tenant] - demand.decodes[tenant]) for tenant in demand.prompt_tokens}
