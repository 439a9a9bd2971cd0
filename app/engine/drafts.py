"""Guesses of what a request generates next, which the worker checks in the same pass; see `app.core.step`."""

from typing import NamedTuple, Protocol

from ..core.request import Request


class Guess(NamedTuple):
    """What may follow the tokens of a request."""

    token_ids: list[int]
    chances: list[float]
    """Of each of them to be right with all before it, 0 to 1."""


NO_GUESS = Guess([], [])


class Chance:
    """How often something was right of late: each case weighs less with every further one."""

    __slots__ = ("_forget", "_right", "_tried")

    def __init__(self, forget: float, right: float = 0.0, tried: float = 0.0) -> None:
        """`forget`: the weight that a case keeps with each further one. At first, it is as if some had been tried."""
        self._forget, self._right, self._tried = forget, right, tried

    def learn(self, is_right: bool) -> None:
        """Take in another case."""
        self._right = self._forget * self._right + is_right
        self._tried = self._forget * self._tried + 1

    def near(self, others: "Chance", trust: float) -> float:
        """The chance that the next one is right, where `trust` of these cases weigh as much as those of all others."""
        return (trust * others._right / others._tried + self._right) / (trust + self._tried)


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

    def end(self, request: Request) -> None:
        """A request has ended."""
        ...
