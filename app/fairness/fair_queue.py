"""Whose turn it is: waiting requests in lines by tenant, served so that each tenant gets its share.

By virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): a tenant's counter is
the service that it had, over its weight, and the tenant with the least is next. A tenant that comes back after a pause
has not saved up service meanwhile: its counter is lifted to the least of those that wait, but for a small credit.
Within a tenant, priority and then arrival decide.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from ..core.request import Request
from .line import Line

_PRESENCE = 10.0
"""Seconds without a request after which a tenant is forgotten."""


class _Account:
    """One tenant's requests, and the service that it had."""

    def __init__(self) -> None:
        self.line = Line()
        self.counter = 0.0
        self.last_charge = 0
        self.seen_at = 0.0


class FairQueue:
    """A line for each tenant. Finding the next request takes time by the number of tenants, not of requests."""

    def __init__(self, credit: float) -> None:
        """`credit`: service that a returning tenant may keep (tokens; over its weight), so that occasional single
        requests are not queued behind a heavy tenant's backlog.
        """
        self._credit = credit
        self._accounts: dict[str, _Account] = {}
        self._num_charges = 0
        self._last_counter = 0.0  # of the tenant that was served last
        self._now = 0.0
        self.has_several_tenants = False
        """Without them there is nothing to share."""

    def forget_absent(self, now: float, running: Iterable[Request]) -> None:
        """Forget tenants that had no request for long. To be called from time to time, with the running requests."""
        self._now = now
        if len(self._accounts) > 1:
            for request in running:
                self._account(request).seen_at = now
            present = {
                name: account
                for name, account in self._accounts.items()
                if account.seen_at > now - _PRESENCE or account.line.first() is not None
            }
            if present and len(present) < len(self._accounts):  # who returns is not better off than who stayed
                self._accounts = present
                self._last_counter = max(self._last_counter, min(one.counter for one in present.values()))
        self.has_several_tenants = len(self._accounts) > 1

    def push(self, request: Request) -> None:
        """Add a new request to its tenant's line."""
        account = self._account(request)
        if account.line.first() is None:  # back from a pause
            waiting = [one.counter for one in self._accounts.values() if one.line.first() is not None]
            least = min(waiting, default=self._last_counter)
            account.counter = max(account.counter, least - self._credit / request.weight)
        self.put_back(request)

    def put_back(self, request: Request) -> None:
        """Add a request to its tenant's line that was in it before: the tenant has not been away."""
        account = self._account(request)
        account.seen_at = self._now
        account.line.push(request)

    def first(self) -> Request | None:
        """The request whose turn it is; None if none is waiting."""
        best: tuple[tuple[float, int], Request] | None = None
        for account in self._accounts.values():
            # A tenant that is back from a pause goes before the one to whose counter it was lifted.
            turn = account.counter, account.last_charge
            if (best is None or turn < best[0]) and (request := account.line.first()) is not None:
                best = turn, request
        return best[1] if best else None

    def some(self, most: int) -> Iterator[Request]:
        """Up to so many of each tenant's requests that wait."""
        return chain.from_iterable(account.line.some(most) for account in self._accounts.values())

    def pop(self, request: Request) -> None:
        """Take out the request that `first` returned."""
        account = self._accounts[request.tenant]
        account.line.pop()
        self._last_counter = account.counter

    def discard(self, request: Request) -> None:
        """Forget a request that has ended while it was in its line."""
        self._account(request).line.count_ended()

    def charge(self, request: Request, cost: float) -> None:
        """Account for service that a request's tenant was given."""
        account = self._account(request)
        account.counter += cost / request.weight
        account.seen_at = self._now
        self._num_charges += 1
        account.last_charge = self._num_charges

    def counter(self, tenant: str) -> float:
        """The service that a tenant had, over its weight; 0 for one that is not known."""
        account = self._accounts.get(tenant)
        return account.counter if account else 0.0

    def _account(self, request: Request) -> _Account:
        account = self._accounts.get(request.tenant)
        if account is None:
            account = self._accounts[request.tenant] = _Account()
        return account
