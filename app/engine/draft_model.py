"""Drafts by a draft model or a draft head, which the worker has beside the served model (`app.worker.draft_model`)."""

from ..core.request import Request
from ..core.step import BY_MODEL
from .drafts import Chance, Guess

_FORGET = 0.98
"""Weight that a draft keeps in the chance with each further one."""
_FORGET_OWN = 0.9
"""The same for a request's own drafts."""
_TRUST = 4.0
"""How many drafts of a request's own weigh as much as those of all requests."""


class DraftModelProposer:
    """See `Proposer`. The engine says how many drafts there are to be, and learns how many were right."""

    def __init__(self) -> None:
        self._chance = Chance(_FORGET, 2.4, 4.0)  # as if some had been right

    def propose(self, request: Request, most: int) -> Guess:
        """See `Proposer`."""
        chance = _own_chance(request).near(self._chance, _TRUST)
        return Guess([BY_MODEL] * most, [chance**number for number in range(1, most + 1)])

    def learn(self, request: Request, num_drafts: int, num_right: int) -> None:
        """See `Proposer`. Behind a wrong draft, the others say nothing."""
        own = _own_chance(request)
        for is_right in [True] * num_right + [False] * (num_right < num_drafts):
            self._chance.learn(is_right)
            own.learn(is_right)

    def end(self, request: Request) -> None:
        """See `Proposer`."""


def _own_chance(request: Request) -> Chance:
    if not isinstance(request.of_proposer, Chance):
        request.of_proposer = Chance(_FORGET_OWN)
    return request.of_proposer
