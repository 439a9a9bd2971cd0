"""What each tenant holds of the batch, against the share that is due to it by its weight."""

from collections import Counter
from collections.abc import Iterable

from ..core.request import Request


class DominantShares:
    """Shares of rows and of blocks; what counts is that of which a tenant holds the larger part.

    As in Ghodsi et al., Dominant Resource Fairness, NSDI 2011.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_rows = 0
        self._num_blocks = num_blocks
        self._weights: dict[str, float] = {}
        self._rows: Counter[str] = Counter()
        self._blocks: Counter[str] = Counter()
        self.exceeded: set[str] = set()
        """Tenants that hold more than their share."""

    def measure(self, running: Iterable[Request], following: Request | None, num_rows: int) -> None:
        """Count what running requests hold; shares are those of their tenants and of the next request's."""
        self._num_rows = num_rows
        self._rows, self._blocks = Counter(), Counter()
        self._weights = {following.tenant: following.weight} if following else {}
        for request in running:
            self._weights[request.tenant] = request.weight
            self._rows[request.tenant] += 1
            self._blocks[request.tenant] += request.num_held_blocks(group=0)
        self.exceeded = {tenant for tenant in self._weights if not self._is_within(tenant, 0, 0)}

    def allow(self, tenant: str, num_blocks: int) -> bool:
        """Whether a tenant stays within its share with one more row and so many more blocks."""
        return self._is_within(tenant, 1, num_blocks)

    def _is_within(self, tenant: str, more_rows: int, more_blocks: int) -> bool:
        rows = (self._rows[tenant] + more_rows) / self._num_rows
        blocks = (self._blocks[tenant] + more_blocks) / self._num_blocks
        return max(rows, blocks) <= self._weights[tenant] / sum(self._weights.values())
