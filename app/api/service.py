"""The served model, as all routes see it."""

import asyncio
import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..checkpoint.encoder_decoders import EncoderDecoderConfig
from ..checkpoint.encoders import EncoderConfig
from ..checkpoint.image_models import ImageModelConfig
from ..checkpoint.predictors import Predictor, reads_text, tasks_of
from ..core.engine_client import EngineClient
from ..core.lifecycle import Lifecycle
from ..core.wire import EngineReady, Task
from ..errors import (
    ApiError,
    DeadlineError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    TenantQueueFullError,
    UnsupportedError,
)
from ..grammar.checker import GrammarChecker
from ..media.preparer import ImagePreparer
from ..metrics import Metrics, ModelState
from ..settings import Settings
from ..tenants import Tenant
from ..text.chat_template import ChatTemplate
from ..text.message_format import MessageFormat
from ..text.pairs import PairPrompts
from ..text.tokenizer import Tokenizer
from ..version import __version__
from .edge.admission import Admission
from .edge.kept_prompts import KeptPrompts
from .edge.request_log import RequestLog
from .edge.resumable import ResumableStreams

_LOOK_SECONDS = 0.2
"""Time between two looks whether a model that is being loaded has failed."""
Modality = Literal["text", "image", "audio"]
_DOES: dict[Task, str] = {
    "generate": "generates text",
    "embed": "embeds {}",
    "classify": "classifies {}",
    "token_classify": "classifies the tokens of texts",
    "score": "compares texts",
    "forecast": "forecasts series of numbers",
    "transcribe": "writes down what is said in a sound (/v1/audio/transcriptions)",
}


@dataclass(frozen=True)
class Service:
    """One served model: its text side, its engine, its metrics."""

    settings: Settings
    model_name: str
    created: int
    """When the service started, in seconds since 1970."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    message_format: MessageFormat
    grammars: GrammarChecker
    streams: ResumableStreams
    kept_prompts: KeptPrompts
    predictor: Predictor | None
    """None for a model that generates."""
    engine: EngineClient
    metrics: Metrics
    admission: Admission
    encoder_decoder: EncoderDecoderConfig | None = None
    """How the model reads and writes, if it does so with an encoder and a decoder."""
    images: ImagePreparer | None = None
    """None for a model that reads no images."""
    lifecycle: Lifecycle | None = None
    """Of one of several models; a model that is alone does not sleep."""

    @property
    def state(self) -> ModelState:
        """Whether requests can be served now, or what stands in the way."""
        if self.engine.ready is not None:
            return "ready"
        state = "awake" if self.lifecycle is None else self.lifecycle.state
        return "loading" if state == "awake" else state

    def ready(self) -> EngineReady:
        """What the engine says of itself. Raises EngineUnavailableError while it is not ready."""
        if self.engine.ready is None:
            raise EngineUnavailableError(self.engine.failure or "the model is still loading")
        return self.engine.ready

    async def look(self, seconds: float | None = None) -> None:
        """Wait until the engine is ready, but only for so long; None: for a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS if seconds is None else seconds):
                await self.engine.wait_until_ready()

    async def wait_until_ready(self, entry: RequestLog) -> None:
        """Wait for an engine, for which one of several models is woken, until the request's deadline.

        Raises EngineUnavailableError if there will be none, and DeadlineError.
        """
        while self.engine.ready is None:
            if self.lifecycle is not None:
                self.lifecycle.want()
                if reason := self.lifecycle.reason:
                    raise EngineUnavailableError(f"the model '{self.model_name}' cannot be loaded: {reason}")
            if entry.deadline is not None and time.monotonic() > entry.deadline:
                raise self.expired(entry)
            await self.look()

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the same seed gives the same text as long as it does not change."""
        ready = self.ready()
        parts = (__version__, self.model_name, ready.architecture, ready.model_impl, ready.device, ready.dtype)
        return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"

    def failed(self, error: str, blames_request: bool = False) -> ApiError:
        """The error of a failed request: 503 if the engine is gone, so that another try may succeed."""
        if self.engine.failure is not None:
            return EngineUnavailableError(f"the engine is not available: {self.engine.failure}")
        return InvalidRequestError(error) if blames_request else InternalError(error or "the request failed")

    def expired(self, entry: RequestLog) -> DeadlineError:
        """The error of a request whose deadline has passed."""
        entry.rejection = DeadlineError.rejection
        return DeadlineError("the request's time is over (X-Request-Timeout, or the server's request_timeout)")

    def check_queue(self, tenant: Tenant) -> None:
        """Raise TenantQueueFullError if a tenant has as much waiting as it may have.

        To be called before a body is read, and again where its work enters the queue: others may have come meanwhile.
        """
        for what, most, waiting in (
            ("requests", tenant.max_queued_requests, self.engine.num_waiting(tenant.name)),
            ("prompt tokens", tenant.max_queued_tokens, self.engine.num_waiting_tokens(tenant.name)),
        ):
            if most is not None and waiting >= most:
                error = TenantQueueFullError(f"{waiting} {what} of this key's owner are waiting; try again later")
                error.retry_after = self.engine.retry_after
                raise error

    def use_tokens(self, tenant: Tenant, kind: Literal["prompt", "generation"], count: int, adapter: str = "") -> None:
        """Count the tokens of a tenant, for its limits and its metrics, and for those of an adapter."""
        self.admission.use_tokens(tenant, count)
        self.metrics.record_tenant_tokens(tenant.name, kind, count)
        if adapter:
            self.metrics.record_adapter_tokens(adapter, kind, count)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the served model can do."""
        return tasks_of(self.predictor, self.encoder_decoder)

    @property
    def reads_text(self) -> bool:
        """Whether the served model reads or writes text."""
        return reads_text(self.predictor, self.encoder_decoder)

    @property
    def reads(self) -> list[Modality]:
        """What the served model reads."""
        ready, hears = self.engine.ready, self.encoder_decoder is not None and self.encoder_decoder.hears
        sees = isinstance(self.predictor, ImageModelConfig) or (ready is not None and ready.reads_images)
        reads: dict[Modality, bool] = {"text": self.reads_text and not hears, "image": sees, "audio": hears}
        return [name for name, does in reads.items() if does]

    @cached_property
    def pair_prompts(self) -> PairPrompts:
        """Writes the prompts of a model that judges pairs of texts."""
        assert isinstance(self.predictor, EncoderConfig)
        return PairPrompts(self.chat_template, self.predictor.prompt, self.predictor.adds_generation_prompt)

    def check_task(self, *tasks: Task) -> None:
        """UnsupportedError, which says what the served model does, if it can do none of the tasks."""
        if not set(tasks) & set(self.tasks):
            raise self._cannot()

    def check_text(self) -> None:
        """UnsupportedError, which says what the served model does, if it reads no text."""
        if not self.reads_text:
            raise self._cannot()

    def _cannot(self) -> UnsupportedError:
        what = " and ".join(name + "s" for name in self.reads)
        does = " and ".join(_DOES[task].format(what) for task in self.tasks)
        return UnsupportedError(f"this model {does}: it cannot do what this path does", "model")

    def serves(self, name: str) -> bool:
        """Whether a name is that of the served model, or of one of its adapters."""
        return name == self.model_name or name in self.engine.adapters

    def name_of(self, asked: str | None) -> str:
        """What an answer calls the model that was asked for."""
        return asked or self.model_name

    def adapter_of(self, name: str | None) -> str:
        """The adapter that a model's name stands for; empty for the served model itself."""
        return "" if name is None or name == self.model_name else name

    def check_model(self, name: str | None) -> None:
        """NotFoundError if `name` is given, and neither the served model nor one of its adapters."""
        if name is not None and not self.serves(name):
            names = ", ".join(f"'{served}'" for served in (self.model_name, *self.engine.adapters))
            error = NotFoundError(f"the model '{name}' does not exist; this server has {names}", "model")
            error.code = "model_not_found"
            raise error
