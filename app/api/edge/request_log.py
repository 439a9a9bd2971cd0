"""What is known of a request when it has ended: its line in the log and its spans are made of this.

There is no text in it, neither a client's nor a model's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.core.request import FinishReason
from app.core.sampling import SamplingParams
from app.core.wire import RequestTiming
from app.errors import ApiError
from app.tenants import EVERYBODY, Tenant


@dataclass
class Usage:
    """Token counts of a call. A prompt counts once, however many choices continue it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class RequestLog:
    """One HTTP request. Those who work on it note what they know; the last one who lets it go has it recorded."""

    request_id: str
    arrived_at: float
    """Seconds, `time.monotonic()`."""
    record: Callable[["RequestLog"], None]
    """Called once, when it has ended."""
    tenant: Tenant = EVERYBODY
    deadline: float | None = None
    """When the request has to have ended, `time.monotonic()`."""
    status: int = 0
    """Of the answer; 0 if there was none."""
    rejection: str | None = None
    """Why it was refused, as metrics call it."""
    error: str | None = None
    """What went wrong, for operators."""
    error_type: str | None = None
    """The same as clients are told in `code`, or in `type` where there is none."""

    # Of a request that came to the engine:
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
    """Of each text that was generated or encoded, by its place in the call; in the order of their ends."""
    timings: dict[int, RequestTiming] = field(default_factory=dict)
    """Of those that the engine gave something for. All have ended: `finished_at` is set."""

    _num_holders: int = 1

    def engine_id(self, index: int) -> str:
        """What the engine is to call the request's part `index`: clients may choose the same id twice."""
        return f"{self.request_id}-{index}-{time.monotonic_ns():x}"

    def note_error(self, error: ApiError) -> None:
        """It is refused, or it failed."""
        self.error_type = error.code or error.type
        # The text of a refusal may repeat what the client wrote, which is nothing for the log.
        self.error = error.message if error.status >= 500 else self.error_type

    def note_end(self, index: int, reason: FinishReason, timing: RequestTiming | None) -> None:
        """One of its texts has ended just now. `timing`: what the engine said last."""
        self.finish_reasons[index] = reason
        if timing is not None and timing.scheduled_at:
            finished_at = timing.finished_at or time.monotonic()
            self.timings[index] = RequestTiming(
                timing.arrived_at, timing.scheduled_at, timing.first_token_at or finished_at, finished_at
            )

    def hold(self) -> None:
        """Its work goes on, even if its connection ends."""
        self._num_holders += 1

    def release(self) -> None:
        """Its connection, or the work that held it, has ended."""
        self._num_holders -= 1
        if self._num_holders == 0:
            self.record(self)

    def whole_timing(self) -> RequestTiming | None:
        """From the first of its texts that was scheduled to the last that ended."""
        if not self.timings:
            return None
        timings = self.timings.values()
        finished_at = max(timing.finished_at for timing in timings)
        return RequestTiming(
            min(timing.arrived_at for timing in timings),
            min(timing.scheduled_at for timing in timings),
            # An encoder has no more to do for a text once it has read it.
            finished_at if self.sampling is None else min(timing.first_token_at for timing in timings),
            finished_at,
        )

    def fields(self) -> dict[str, Any]:
        """For its line in the log. Times in seconds."""
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
