"""One bounded memory that several tenants keep things in."""

from collections import Counter


class FairMemory:
    """Accounts for what owners keep. One may fill what others leave free, but not push them below equal shares.

    The amount is of whatever is bounded: bytes, or a count of things.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: of all owners together."""
        self._limit = limit
        self._kept: Counter[str] = Counter()

    def add(self, owner: str, amount: int) -> None:
        """An owner keeps so much more, or less if it is negative."""
        self._kept[owner] += amount
        if not self._kept[owner]:
            del self._kept[owner]

    @property
    def debtors(self) -> list[str]:
        """Who has to give something up, if too much is kept: those beyond their shares, the largest first."""
        if self._kept.total() <= self._limit:
            return []
        share = self._limit / len(self._kept)
        return [owner for owner, amount in self._kept.most_common() if amount > share]
