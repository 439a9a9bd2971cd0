"""What the scheduler knows of tenants: one protocol, `SharePolicy`.

`Alone` implements it for a service with one tenant, `FairShares` for several.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..core.request import Request


class Pacer(Protocol):
    """What a policy asks about the time that steps take. `engine/chunk_pacer.py` implements it."""

    target: float
    """Seconds that a step with prompts in it is planned to take."""
    min_tokens: int
    """A step's smallest chunk of prompt."""
    max_tokens: int
    """A step's largest chunk of prompt."""

    def prompt_tokens(self, num_decodes: int) -> int:
        """Most prompt tokens for the next step, beside that many decodes."""
        ...

    def seconds(self, num_decodes: int, prompt_tokens: int) -> float:
        """How long such a step is expected to take."""
        ...

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        ...


class SharePolicy(Protocol):
    """Decides which tenant's requests the scheduler serves, and with how much.

    To plan a step, the scheduler calls `begin_step`; `victim` until the next request has room; `participants`;
    `prompt_tokens` and `divide`; `take` for each running prompt; `first` and `pop` for waiting requests; `planned`.
    When the step has run, it calls `charge` for each token and then `observe`. Steps run in the order in which they
    were planned, but the next one may be planned before the last one has run.
    """

    # ------------------------------------------------------------------ requests that wait

    def push(self, request: Request) -> None:
        """Queue a new request."""
        ...

    def put_back(self, request: Request) -> None:
        """Queue a request again that was taken out, or was preempted."""
        ...

    def first(self) -> Request | None:
        """The request whose turn it is; None if none is waiting, or if its tenant yields the step being planned."""
        ...

    def pop(self, request: Request) -> None:
        """Take out the request that `first` returned."""
        ...

    def discard(self, request: Request) -> None:
        """Forget a request that has ended while it was queued."""
        ...

    # ------------------------------------------------------------------ planning of a step

    def begin_step(self, now: float, running: list[Request], num_rows: int) -> None:
        """Begin to plan a step, and sort the running requests by `order`. `num_rows`: most requests that can run."""
        ...

    def order(self, request: Request) -> Any:
        """Sort key of running requests: who is smaller is planned earlier and preempted later."""
        ...

    def victim(self, running: Sequence[Request], following: Request, num_blocks: int) -> Request | None:
        """The running request that has to make room for the one that is next and needs so many blocks, if any has."""
        ...

    def participants(self, running: list[Request], has_room: Callable[[Request], bool]) -> list[Request]:
        """The running requests that take part in the step, in order; those of tenants that yield it do not.

        `has_room`: whether there is memory for the request that is next.
        """
        ...

    def cancel_yield(self) -> bool:
        """Let everybody take part, since the step would be empty; returns whether anybody was to yield it."""
        ...

    def prompt_tokens(self, num_decodes: int) -> int:
        """Most prompt tokens for the step, beside that many decodes."""
        ...

    def divide(self, num_tokens: int) -> None:
        """Divide the step's prompt tokens between the tenants that take part; `take` gives them out."""
        ...

    def take(self, request: Request, num_tokens: int) -> int:
        """How many of these prompt tokens its tenant's allowance leaves a running request; they are taken from it."""
        ...

    def planned(self) -> None:
        """The step is complete and will run."""
        ...

    # ------------------------------------------------------------------ what came of it

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        """Account for service that a request was given."""
        ...

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from the time of the oldest of the planned steps, which has run."""
        ...

    def forget_planned(self) -> None:
        """None of the planned steps will be observed: one has failed, and what was behind it is void."""
        ...
