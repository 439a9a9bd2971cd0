"""Drafts by a draft model, which the worker has beside the served one (`app.worker.draft_model`)."""

from ..core.request import Request
from ..core.step import BY_MODEL
from .drafts import Guess

_FORGET = 0.98
"""Weight that a draft keeps in the chance with each further one."""
_FORGET_OWN = 0.9
"""The same for a request's own drafts."""
_TRUST = 4.0
"""How many drafts of a request's own weigh as much as those of all requests."""


class DraftModelProposer:
    """See `Proposer`. The engine says how many drafts there are to be, and learns how many were right."""

    def __init__(self) -> None:
        self._right, self._all = 2.4, 4.0  # as if some had been right

    def propose(self, request: Request, most: int) -> Guess:
        """See `Proposer`."""
        right, tried = request.of_proposer or (0.0, 0.0)
        chance = (_TRUST * self._right / self._all + right) / (_TRUST + tried)
        return Guess([BY_MODEL] * most, [chance**number for number in range(1, most + 1)])

    def learn(self, request: Request, num_drafts: int, num_right: int) -> None:
        """See `Proposer`. Behind a wrong draft, the others say nothing."""
        right, tried = request.of_proposer or (0.0, 0.0)
        for is_right in [1] * num_right + [0] * (num_right < num_drafts):
            self._right, self._all = _FORGET * self._right + is_right, _FORGET * self._all + 1
            right, tried = _FORGET_OWN * right + is_right, _FORGET_OWN * tried + 1
        request.of_proposer = right, tried
