"""Whose turn it is: waiting requests in lines by tenant, served so that each tenant gets its share.

By virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): a tenant's counter is
the service that it had, over its weight, and the tenant with the least is next. A tenant that comes back after a pause
has not saved up service meanwhile: its counter is lifted to the least of those that wait, but for a small credit.
Within a tenant, priority and then arrival decide.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Generic

from app.fairness.line import Line, T

_PRESENCE = 10.0
"""Seconds without a request after which a tenant is forgotten."""


class _Account(Generic[T]):
    """One tenant's requests, and the service that it had."""

    def __init__(self, is_waiting: Callable[[T], bool]) -> None:
        self.line = Line(is_waiting)
        self.counter = 0.0
        self.last_charge = 0
        self.seen_at = 0.0


class FairQueue(Generic[T]):
    """A line for each tenant. To find the next item costs as much as there are tenants, however many items wait."""

    def __init__(self, is_waiting: Callable[[T], bool], credit: float = 0.0) -> None:
        """`is_waiting`: false for an item that has ended; it is passed over when its turn comes.

        `credit`: service that a returning tenant may keep (tokens; over its weight), so that occasional single
        requests are not queued behind a heavy tenant's backlog.
        """
        self._is_waiting = is_waiting
        self._credit = credit
        self._accounts: dict[str, _Account[T]] = {}
        self._num_charges = 0
        self._last_counter = 0.0  # of the tenant that was served last
        self._now = 0.0
        self.has_several_tenants = False
        """Without them there is nothing to share."""

    def forget_absent(self, now: float, running: Iterable[T]) -> None:
        """Forget tenants that had no request for long. To be called from time to time, with the running requests."""
        self._now = now
        if len(self._accounts) > 1:
            for item in running:
                self._account(item).seen_at = now
            present = {
                name: account
                for name, account in self._accounts.items()
                if account.seen_at > now - _PRESENCE or account.line.first() is not None
            }
            if present and len(present) < len(self._accounts):  # who returns is not better off than who stayed
                self._accounts = present
                self._last_counter = max(self._last_counter, min(one.counter for one in present.values()))
        self.has_several_tenants = len(self._accounts) > 1

    def push(self, item: T) -> None:
        """Add a new item to its tenant's line."""
        account = self._account(item)
        if account.line.first() is None:  # back from a pause
            waiting = [one.counter for one in self._accounts.values() if one.line.first() is not None]
            least = min(waiting, default=self._last_counter)
            account.counter = max(account.counter, least - self._credit / item.weight)
        self.put_back(item)

    def put_back(self, item: T) -> None:
        """Add an item to its tenant's line that was in it before: the tenant has not been away."""
        account = self._account(item)
        account.seen_at = self._now
        account.line.push(item)

    def first(self) -> T | None:
        """The item whose turn it is; None if none is waiting."""
        best: tuple[tuple[float, int], T] | None = None
        for account in self._accounts.values():
            # A tenant that is back from a pause goes before the one to whose counter it was lifted.
            turn = account.counter, account.last_charge
            if (best is None or turn < best[0]) and (item := account.line.first()) is not None:
                best = turn, item
        return best[1] if best else None

    def some(self, most: int) -> Iterator[T]:
        """Up to so many of each tenant's items that wait."""
        return chain.from_iterable(account.line.some(most) for account in self._accounts.values())

    def pop(self, item: T) -> None:
        """Take out the item that `first` returned."""
        account = self._accounts[item.tenant]
        account.line.pop()
        self._last_counter = account.counter

    def discard(self, item: T) -> None:
        """Forget an item that has ended while it was in its line."""
        self._account(item).line.count_ended()

    def charge(self, item: T, cost: float) -> None:
        """Account for service that an item's tenant was given."""
        account = self._account(item)
        account.counter += cost / item.weight
        account.seen_at = self._now
        self._num_charges += 1
        account.last_charge = self._num_charges

    def counter(self, tenant: str) -> float:
        """The service that a tenant had, over its weight; 0 for one that is not known."""
        account = self._accounts.get(tenant)
        return account.counter if account else 0.0

    def _account(self, item: T) -> _Account[T]:
        account = self._accounts.get(item.tenant)
        if account is None:
            account = self._accounts[item.tenant] = _Account(self._is_waiting)
        return account
