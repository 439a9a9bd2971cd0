"""Guesses of what a request generates next, which the worker checks in the same pass; see `app.core.step`."""

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Makes drafts from the tokens of a request."""

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow the last one; none if there is nothing to go by."""
        ...
