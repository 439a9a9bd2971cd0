"""The policy of a service that has one tenant."""

from collections.abc import Callable, Sequence
from typing import Any

from ..core.request import Request
from .line import Line
from .policy import Pacer


class Alone:
    """Requests are served by priority, then by arrival. Nobody yields, and there is nothing to account for."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._line = Line()

    # ------------------------------------------------------------------ requests that wait

    def push(self, request: Request) -> None:
        """See SharePolicy."""
        self._line.push(request)

    def put_back(self, request: Request) -> None:
        """See SharePolicy."""
        self._line.push(request)

    def first(self) -> Request | None:
        """See SharePolicy."""
        return self._line.first()

    def pop(self, request: Request) -> None:  # noqa: ARG002
        """See SharePolicy."""
        self._line.pop()

    def discard(self, request: Request) -> None:  # noqa: ARG002
        """See SharePolicy."""
        self._line.count_ended()

    # ------------------------------------------------------------------ planning of a step

    def begin_step(self, now: float, running: list[Request], num_rows: int) -> None:
        """Nothing to do: the scheduler keeps running requests sorted, and their keys do not change."""

    def order(self, request: Request) -> Any:
        """Priority, then arrival."""
        return request.sort_key

    def victim(self, running: Sequence[Request], following: Request, num_blocks: int) -> Request | None:
        """Nobody: requests wait until others end."""

    def participants(self, running: list[Request], has_room: Callable[[Request], bool]) -> list[Request]:  # noqa: ARG002
        """All of them."""
        return running

    def cancel_yield(self) -> bool:
        """Nobody yields."""
        return False

    def prompt_tokens(self, num_decodes: int) -> int:
        """What the pacer says."""
        return self._pacer.prompt_tokens(num_decodes)

    def divide(self, num_tokens: int) -> None:
        """Nothing to do: requests take what they can, in their order."""

    def take(self, request: Request, num_tokens: int) -> int:  # noqa: ARG002
        """All of them."""
        return num_tokens

    def planned(self) -> None:
        """Nothing to remember."""

    # ------------------------------------------------------------------ what came of it

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        """Nothing to account for."""

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """For the pacer."""
        self._pacer.observe(num_decodes, prompt_tokens, seconds)

    def forget_planned(self) -> None:
        """Nothing was remembered."""
