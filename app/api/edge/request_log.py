"""The record of a request, from which its log line and its spans are made. It holds no text of clients or models."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.request import FinishReason
from ...core.sampling import SamplingParams
from ...core.wire import RequestTiming
from ...errors import ApiError
from ...tenants import EVERYBODY, Tenant


@dataclass
class Usage:
    """What a call took. A prompt is counted once, however many choices continue it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the completion's."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Drafts that were right."""
    num_first_tokens: int = 0
    """Choices that have got a token."""
    scheduled_at: float = 0.0
    """Seconds, `time.monotonic()`: when the first of the prompts began to be computed."""
    prompts_ended_at: float = 0.0
    """When the last of them had been."""
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def take_timing(self, timing: RequestTiming) -> None:
        """Of one of the choices. One that wants no tokens has only an end."""
        first_token_at = timing.first_token_at or timing.finished_at
        self.scheduled_at = min(self.scheduled_at or timing.scheduled_at, timing.scheduled_at)
        self.first_token_at = min(self.first_token_at or first_token_at, first_token_at)
        self.prompts_ended_at = max(self.prompts_ended_at, first_token_at)


@dataclass
class RequestLog:
    """One HTTP request. Whoever works on it adds what it knows, and the last holder to release it records it."""

    request_id: str
    arrived_at: float
    """Seconds, `time.monotonic()`."""
    record: Callable[["RequestLog"], None]
    """Called once, when the request has ended."""
    tenant: Tenant = EVERYBODY
    deadline: float | None = None
    """When the request times out, `time.monotonic()`."""
    status: int = 0
    """The answer's HTTP status; 0 if there was no answer."""
    rejection: str | None = None
    """Label of `requests_rejected_total`; None unless the request was refused."""
    error: str | None = None
    """What went wrong, for operators."""
    error_type: str | None = None
    """The error's `code` as clients see it, or its `type` if it has no code."""
    ignored_fields: set[str] = field(default_factory=set)
    """Unknown fields of the body, which were ignored."""

    # Of a request that reached the engine:
    is_stream: bool = False
    response_id: str | None = None
    num_choices: int = 1
    """For each prompt."""
    sampling: SamplingParams | None = None
    """None for an encoder's."""
    usage: Usage | None = None
    ttft: float | None = None
    """Seconds to the first token of any of its texts."""
    finish_reasons: dict[int, FinishReason] = field(default_factory=dict)
    """By the index of each generated or encoded text, in the order in which they ended."""
    timings: dict[int, RequestTiming] = field(default_factory=dict)
    """Of the texts that the engine scheduled. `finished_at` is always set."""

    _num_holders: int = 1

    def engine_id(self, index: int) -> str:
        """A unique id for the engine of the text `index`: clients may use a request id twice."""
        return f"{self.request_id}-{index}-{time.monotonic_ns():x}"

    def note_error(self, error: ApiError) -> None:
        """Note that the request was refused or has failed."""
        self.error_type = error.code or error.type
        # The message of a refusal may repeat what the client wrote, which must not be logged.
        self.error = error.message if error.status >= 500 else self.error_type

    def note_end(self, index: int, reason: FinishReason, timing: RequestTiming | None) -> None:
        """Note that a text has ended now. `timing`: the last one that the engine sent."""
        self.finish_reasons[index] = reason
        if timing is not None and timing.scheduled_at:
            finished_at = timing.finished_at or time.monotonic()
            self.timings[index] = RequestTiming(
                timing.arrived_at, timing.scheduled_at, timing.first_token_at or finished_at, finished_at
            )

    def hold(self) -> None:
        """Keep the record open, since the work continues when the connection ends."""
        self._num_holders += 1

    def release(self) -> None:
        """The connection, or the work that held the record, has ended."""
        self._num_holders -= 1
        if self._num_holders == 0:
            self.record(self)

    def whole_timing(self) -> RequestTiming | None:
        """The timing of all texts together: from the first that was scheduled to the last that ended."""
        if not self.timings:
            return None
        timings = self.timings.values()
        finished_at = max(timing.finished_at for timing in timings)
        return RequestTiming(
            min(timing.arrived_at for timing in timings),
            min(timing.scheduled_at for timing in timings),
            # An encoder is done with a text once it has read it.
            finished_at if self.sampling is None else min(timing.first_token_at for timing in timings),
            finished_at,
        )

    def fields(self) -> dict[str, Any]:
        """The fields of the log line. Times are in seconds."""
        timing, usage = self.whole_timing(), self.usage
        fields = {
            "request_id": self.request_id,
            "tenant": self.tenant.name,
            "duration": time.monotonic() - self.arrived_at,
            "queue": timing.scheduled_at - timing.arrived_at if timing else None,
            "ttft": self.ttft,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "finish_reason": ",".join(dict.fromkeys(self.finish_reasons.values())) or None,
            "error": self.error,
        }
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in fields.items()
            if value is not None
        }
