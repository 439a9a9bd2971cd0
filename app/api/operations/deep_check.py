"""The health check that lets the model generate a token."""

import asyncio
import time

from ...checkpoint.predictors import trial_of
from ...core.request import FinishReason
from ...core.sampling import SamplingParams
from ...core.wire import GenerateCommand, PredictCommand, RequestCommand
from ...errors import ApiError
from ..generation.sources import made_up_source
from ..service import Service

_TIMEOUT = 10.0
_KEPT_SECONDS = 5.0
"""How long a result is reused, so that probes do not become a load."""
_PRIORITY = -(2**31)
"""Ahead of all requests, since the check is not about the length of the queue."""


class DeepCheck:
    """Runs at most one check at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._checked_at = float("-inf")
        self._problem = ""

    async def problem(self, service: Service) -> str:
        """What is wrong, as text; empty if a token came in time, now or within the last seconds."""
        async with self._lock:
            if time.monotonic() - self._checked_at > _KEPT_SECONDS:
                self._problem = await _try(service)
                self._checked_at = time.monotonic()
            return self._problem


async def _try(service: Service) -> str:
    command = _command(service)
    try:
        async with asyncio.timeout(_TIMEOUT):
            async for output in service.engine.generate(command, is_probe=True):
                if output.finish_reason is FinishReason.ERROR:
                    return "the engine failed"
            return ""
    except ApiError as error:
        return error.message
    except TimeoutError:
        service.engine.abort(command.request_id)
        if service.state == "asleep":  # which the check itself does not keep it from
            return ""
        return f"no token within {_TIMEOUT:g} s"


def _command(service: Service) -> RequestCommand:
    now = time.monotonic()
    request_id = f"deep-check-{time.monotonic_ns():x}"
    if service.predictor is not None:
        media = trial_of(service.predictor, service.ready().max_model_len)
        token_ids = [] if media else [0]
        return PredictCommand(
            request_id=request_id,
            token_ids=token_ids,
            type_ids=token_ids,
            media=media,
            priority=_PRIORITY,
            arrived_at=now,
        )
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    return GenerateCommand(
        request_id=request_id,
        prompt_token_ids=[0],
        source=None if service.encoder_decoder is None else made_up_source(service.encoder_decoder),
        sampling=sampling,
        priority=_PRIORITY,
        arrived_at=now,
    )
