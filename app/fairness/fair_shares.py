"""The policy of a service with several tenants: each gets its share, by weight, as far as it wants it."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..core.request import Request
from .demand import StepDemand
from .fair_queue import FairQueue
from .policy import Pacer
from .shares import DominantShares
from .yield_steps import YieldSteps

_INPUT_COST = 1.0
_OUTPUT_COST = 2.0
"""Service that a token stands for, as in the paper on virtual token counters: a generated one takes a step of its
own."""
_LOOK_AHEAD = 8
"""Waiting requests of each tenant that are looked at, to see whether its prompts would fill a step."""


class FairShares:
    """Puts together the fair queue, shares of the batch, division of a step's tokens, and yield steps.

    While only one tenant is there, it costs and does no more than `Alone`.
    """

    def __init__(self, pacer: Pacer, num_blocks: int) -> None:
        self._pacer = pacer
        self._queue = FairQueue(credit=pacer.max_tokens)
        self._shares = DominantShares(num_blocks)
        self._yield_steps = YieldSteps(pacer)
        self._num_rows = 0
        self._demand: StepDemand | None = None  # for the step being planned, if there are several tenants
        self._allowances: dict[str, int] = {}
        self.yielding: set[str] = set()
        """Tenants that take no part in the step planned last."""
        self._planned: deque[bool] = deque()
        """Of each planned step that has not been observed yet, whether somebody yields it."""

    # ------------------------------------------------------------------ requests that wait

    def push(self, request: Request) -> None:
        """See SharePolicy."""
        self._queue.push(request)

    def put_back(self, request: Request) -> None:
        """See SharePolicy."""
        self._queue.put_back(request)

    def first(self) -> Request | None:
        """See SharePolicy."""
        request = self._queue.first()
        return None if request is None or request.tenant in self.yielding else request

    def pop(self, request: Request) -> None:
        """See SharePolicy."""
        self._queue.pop(request)

    def discard(self, request: Request) -> None:
        """See SharePolicy."""
        self._queue.discard(request)

    # ------------------------------------------------------------------ planning of a step

    def begin_step(self, now: float, running: list[Request], num_rows: int) -> None:
        """See SharePolicy."""
        self._num_rows = num_rows
        self._demand = None
        self.yielding = set()
        self._queue.forget_absent(now, running)
        if self._queue.has_several_tenants:
            self._shares.measure(running, self._queue.first(), num_rows)
            running.sort(key=self.order)

    def order(self, request: Request) -> Any:
        """Tenants within their shares come first, then those with less service, then each tenant's own order."""
        tenant = request.tenant
        return (tenant in self._shares.exceeded, self._queue.counter(tenant), *request.sort_key)

    def victim(self, running: Sequence[Request], following: Request, num_blocks: int) -> Request | None:
        """One of a tenant beyond its share that had no less service, if the next one's tenant stays within its own.

        Only a request that has got a token since it was admitted: so everybody gets on.
        """
        if not self._queue.has_several_tenants:
            return None
        self._shares.measure(running, following, self._num_rows)
        if not self._shares.allow(following.tenant, num_blocks):
            return None
        counter = self._queue.counter(following.tenant)
        victims = (
            request
            for request in reversed(running)
            if request.tenant in self._shares.exceeded
            and self._queue.counter(request.tenant) >= counter
            and request.has_progressed
        )
        return next(victims, None)

    def participants(self, running: list[Request], has_room: Callable[[Request], bool]) -> list[Request]:
        """See SharePolicy."""
        if not self._queue.has_several_tenants:
            return running
        self._demand = StepDemand(running)
        num_free_rows = self._num_rows - len(running)
        following = self._queue.first()
        if following and num_free_rows and has_room(following):
            self._demand.add_next(following)
        self.yielding = self._yield_steps.choose(self._demand, self._queue.some(min(num_free_rows, _LOOK_AHEAD)))
        self._demand.remove(self.yielding)
        return [request for request in running if request.tenant not in self.yielding]

    def cancel_yield(self) -> bool:
        """See SharePolicy."""
        has_yielding = bool(self.yielding)
        self.yielding = set()
        return has_yielding

    def prompt_tokens(self, num_decodes: int) -> int:
        """Those of a yield step, or else what the pacer says."""
        if self.yielding:
            return self._yield_steps.prompt_tokens
        # While one tenant's prompts wait for each other, another's may come that should not wait for long.
        is_crowded = self._queue.has_several_tenants and self._queue.first() is not None
        return self._pacer.prompt_tokens(max(num_decodes, int(is_crowded)))

    def divide(self, num_tokens: int) -> None:
        """See SharePolicy."""
        self._allowances = self._demand.allowances(num_tokens) if self._demand else {}

    def take(self, request: Request, num_tokens: int) -> int:
        """See SharePolicy."""
        allowance = self._allowances.get(request.tenant)
        if allowance is None:
            return num_tokens
        count = min(num_tokens, allowance)
        self._allowances[request.tenant] = allowance - count
        return count

    def planned(self) -> None:
        """See SharePolicy."""
        self._planned.append(bool(self.yielding))

    # ------------------------------------------------------------------ what came of it

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        """By virtual token counters. One tenant alone has nothing to account for at each token."""
        if prompt_tokens or self._queue.has_several_tenants:
            self._queue.charge(request, _INPUT_COST * prompt_tokens + _OUTPUT_COST * output_tokens)

    def observe(self, num_decodes: int, prompt_tokens: int, seconds: float) -> None:
        """See SharePolicy."""
        if self._planned.popleft():
            if prompt_tokens == 0:
                return  # it says nothing of a step with all decodes
            num_decodes = 0  # few, beside those whose time is known
        if num_decodes == 0 and prompt_tokens:
            self._yield_steps.observe(prompt_tokens, seconds)
        self._pacer.observe(num_decodes, prompt_tokens, seconds)

    def forget_planned(self) -> None:
        """See SharePolicy."""
        self._planned.clear()

    def counter(self, tenant: str) -> float:
        """The service that a tenant had (tokens by cost, over its weight)."""
        return self._queue.counter(tenant)
