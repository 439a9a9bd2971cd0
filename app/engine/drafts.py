"""Guesses of what a request generates next, which the worker checks in the same pass; see `app.core.step`."""

from typing import NamedTuple, Protocol

from ..core.request import Request


class Guess(NamedTuple):
    """What may follow the tokens of a request."""

    token_ids: list[int]
    chances: list[float]
    """Of each of them to be right with all before it, 0 to 1."""


NO_GUESS = Guess([], [])


class Proposer(Protocol):
    """Makes drafts from the known tokens of requests."""

    def propose(self, request: Request, most: int) -> Guess:
        """Up to `most` tokens that may follow the last known one; NO_GUESS if there is nothing to go by.

        It is called before each step without prompts, as long as few requests run.
        """
        ...

    def learn(self, request: Request, num_drafts: int, num_right: int) -> None:
        """A step had so many drafts for a request, of which the first ones were right."""
        ...
