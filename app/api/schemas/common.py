"""Fields that completions and chat share, and what holds for every request body."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.schemas.unsupported import IN_REQUESTS, IN_STREAM_OPTIONS, Unsupported
from app.errors import InvalidRequestError

MAX_STOP_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 4096
_INT64 = 2**63

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Label = Annotated[str, Field(max_length=1024)]


class RequestBody(BaseModel):
    """Base of everything that a client sends. Types are strict, numbers finite, and null means "not given".

    Fields that are not declared are kept here, so that `app.api.body` can refuse them by their whole name.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    unsupported: ClassVar[Unsupported] = {}
    """Fields that are known, and the values of them that are as good as not given."""
    token_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that may hold long lists of token ids."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    def check(self) -> None:
        """Raise InvalidRequestError for what types cannot express. Called once the whole body is known."""


class StreamOptions(RequestBody):
    """What a stream holds beside text."""

    unsupported = IN_STREAM_OPTIONS
    include_usage: bool = Field(False, description="send token counts in a last event")
    continuous_usage_stats: bool = Field(
        False, description="send token counts in every event, as far as they are known"
    )
    resumable: bool = Field(
        False, description="number the events, and go on for a client that comes back: see /v1/streams/{stream_id}"
    )


class TokenFields(RequestBody):
    """How each token is chosen. What is not given is the model's own default, or the API's."""

    model: Label | None = Field(None, description="the served model's name")
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool = False
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, description="token id to what is added to its logit"
    )
    stream: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")


class SamplingFields(TokenFields):
    """How texts are generated, and when to stop."""

    unsupported = IN_REQUESTS
    n: int = Field(1, ge=1)
    stop: str | list[str] = Field(default_factory=list, description=f"strings of up to {MAX_STOP_LENGTH} characters")
    include_stop_str_in_output: bool = False
    stream_options: StreamOptions | None = None
    user: Label | None = Field(None, description="changes nothing")
    safety_identifier: Label | None = Field(None, description="changes nothing")
    prompt_cache_key: Label | None = Field(None, description="changes nothing")

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event about usage."""
        asked = self.stream_options
        return asked is not None and (asked.include_usage or asked.continuous_usage_stats)

    def check(self) -> None:
        """See `RequestBody.check`."""
        if max(map(len, self.stop_strings), default=0) > MAX_STOP_LENGTH:
            raise InvalidRequestError(f"stop: at most {MAX_STOP_LENGTH} characters each", "stop")
        if not all(self.stop_strings):
            raise InvalidRequestError("stop: a stop string must not be empty", "stop")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed when stream is true", "stream_options")
