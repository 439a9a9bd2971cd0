"""What every route works with."""

from dataclasses import dataclass
from typing import Literal

from app.api.edge.admission import Admission
from app.api.edge.request_log import RequestLog
from app.api.edge.resumable import ResumableStreams
from app.checkpoint.encoders import EncoderConfig
from app.core.engine_client import EngineClient
from app.core.wire import EngineReady
from app.errors import (
    ApiError,
    DeadlineError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from app.grammar.compiler import GrammarCompiler
from app.metrics import Metrics
from app.settings import Settings
from app.tenants import Tenant
from app.text.chat_template import ChatTemplate
from app.text.message_format import MessageFormat
from app.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Service:
    """One served model: its text side, its engine, its metrics."""

    settings: Settings
    model_name: str
    created: int
    """Seconds since 1970: when the service started."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    message_format: MessageFormat
    grammars: GrammarCompiler
    streams: ResumableStreams
    encoder: EncoderConfig | None
    """None for a model that generates."""
    engine: EngineClient
    metrics: Metrics
    admission: Admission

    def ready(self) -> EngineReady:
        """The engine's own description; EngineUnavailableError while it has none."""
        if self.engine.ready is None:
            raise EngineUnavailableError(self.engine.failure or "the model is still loading")
        return self.engine.ready

    def failed(self, error: str, blames_request: bool = False) -> ApiError:
        """A request failed: by itself, or because the engine is gone, and then another try may go better."""
        if self.engine.failure is not None:
            return EngineUnavailableError(f"the engine is not available: {self.engine.failure}")
        return InvalidRequestError(error) if blames_request else InternalError(error or "the request failed")

    def expired(self, entry: RequestLog) -> DeadlineError:
        """A request's time is over."""
        entry.rejection = DeadlineError.rejection
        return DeadlineError("the request's time is over (X-Request-Timeout, or the server's request_timeout)")

    def use_tokens(self, tenant: Tenant, kind: Literal["prompt", "generation"], count: int) -> None:
        """A tenant is given service, which counts for its limits."""
        self.admission.use_tokens(tenant, count)
        self.metrics.record_tenant_tokens(tenant.name, kind, count)

    def check_generates(self) -> None:
        """UnsupportedError for a model that does not generate text."""
        if self.encoder is not None:
            raise UnsupportedError("this model is an encoder: it generates no text", "model")

    def check_model(self, name: str | None) -> None:
        """NotFoundError unless `name` is the served model, or not given."""
        if name is not None and name != self.model_name:
            error = NotFoundError(f"the model '{name}' does not exist; this server has '{self.model_name}'", "model")
            error.code = "model_not_found"
            raise error
