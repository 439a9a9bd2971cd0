"""The API layer's view of an engine: the one seam between HTTP and the batch."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol

from .heartbeat import EngineHeartbeat
from .step_report import StepReport
from .wire import EngineReady, RequestCommand, RequestOutput


class EngineClient(Protocol):
    """Submits requests to an engine and hands back what comes of them."""

    @property
    def ready(self) -> EngineReady | None:
        """What the engine said when it was ready; None while it is loading, also after one that died."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the engine is gone for good, for people; None while it is loading or well."""
        ...

    @property
    def heartbeat(self) -> EngineHeartbeat:
        """Whether the engine gets on."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """The adapters that requests can have, by name: their folders. They outlive an engine."""
        ...

    @property
    def has_requests(self) -> bool:
        """Whether any request has not ended, apart from probes."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether no more requests are taken now."""
        ...

    @property
    def retry_after(self) -> int:
        """Seconds after which half of what waits now will have begun, at the rate of the last seconds."""
        ...

    def num_waiting(self, tenant: str) -> int:
        """A tenant's requests that have not got anything yet."""
        ...

    def num_waiting_tokens(self, tenant: str) -> int:
        """Tokens of their prompts."""
        ...

    def check_room(self) -> None:
        """QueueFullError if no more requests are taken now."""
        ...

    async def wait_until_ready(self) -> EngineReady:
        """Wait for the engine to load its model; EngineUnavailableError if it fails to."""
        ...

    async def wait_until_lost(self) -> None:
        """Wait for the engine to die; EngineUnavailableError if no other will come."""
        ...

    def generate(self, command: RequestCommand, is_probe: bool = False) -> AsyncIterator[RequestOutput]:
        """Submit a request at once (not at the first `anext`), and iterate over its outputs.

        The last output has a `finish_reason`. If the engine dies, the next one goes on with the request; one of which
        engines die ends with FinishReason.ERROR.
        A command with `progress` goes on with a request that was aborted, and is not refused for want of room.
        When the reader is slower than the engine, outputs that wait are merged into one. Probes use no model.

        Raises EngineUnavailableError while the engine is loading or dead, QueueFullError when too many
        requests are open.
        """
        ...

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load an adapter; it is among `adapters` then.

        Raises InvalidRequestError if it cannot be loaded, EngineUnavailableError while the engine is loading or dead.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Let no more requests have an adapter. Those that have it go on. Raises what `load_adapter` does."""
        ...

    def step_reports(self) -> AsyncGenerator[StepReport, None]:
        """What the engine's steps look like, as long as somebody reads: the latest one, at most ten a second.

        They go on with the next engine if this one dies, and end when the service does.
        """
        ...

    def end_all(self, error: str) -> None:
        """End every open request with an error. An engine that comes later takes new ones."""
        ...

    def expire(self, request_id: str) -> None:
        """End a request whose time is over: its last output, FinishReason.TIMEOUT, comes now."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request early; does nothing if it has ended. Its iterator must not be used any more."""
        ...

    async def close(self, reason: str) -> None:
        """Stop listening to engines: open requests end with an error, and more are refused, for this reason."""
        ...
