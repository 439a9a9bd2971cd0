"""Fields that completions and chat share, and how unknown ones are refused."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidRequestError, UnsupportedError

MAX_STOP = 4
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
_INT64 = 2**63

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_UNSUPPORTED = frozenset(
    (
        "allowed_token_ids",
        "audio",
        "bad_words",
        "best_of",
        "cache_salt",
        "documents",
        "early_stopping",
        "function_call",
        "functions",
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "length_penalty",
        "logits_processors",
        "metadata",
        "mirostat",
        "mm_processor_kwargs",
        "modalities",
        "prediction",
        "prompt_embeds",
        "prompt_logprobs",
        "reasoning_effort",
        "response_format",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "service_tier",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "store",
        "stream_interval",
        "structured_outputs",
        "suffix",
        "tool_choice",
        "tools",
        "truncate_prompt_tokens",
        "typical_p",
        "use_beam_search",
        "verbosity",
        "web_search_options",
    )
)
"""Fields of OpenAI's and vLLM's APIs that Paceline knows, and does not do yet."""

_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "suffix": ("",),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "bad_words": ([],),
}
"""Values of theirs that ask for nothing, and so are granted."""

_IGNORED = frozenset(("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"))
"""Fields that may be set to anything: they do not change an answer."""


class RequestBody(BaseModel):
    """A request: unknown fields are refused, known but unsupported ones by name, null means "not given"."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.model_fields.keys()
        for name, value in data.items():
            if name in known or name in _IGNORED or value is None:
                continue
            if name not in _UNSUPPORTED:
                raise InvalidRequestError(f"Unrecognized request argument supplied: {name}", name)
            if value not in _HARMLESS.get(name, ()):
                raise UnsupportedError(f"{name} is not supported", name)
        return {name: value for name, value in data.items() if name in known and value is not None}


class StreamOptions(BaseModel):
    """What a stream holds beside text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = Field(False, description="send token counts in a last event")
    include_obfuscation: bool = Field(False, description="accepted; events are never padded")


class SamplingFields(RequestBody):
    """How tokens are chosen, and when to stop. What is not given is the model's own default, or the API's."""

    model: str | None = Field(None, description="the served model's name")
    temperature: Finite | None = Field(None, ge=0, le=100)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: off")
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    n: int = Field(1, ge=1)
    stop: str | list[str] = Field(default_factory=list, description=f"up to {MAX_STOP} strings")
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
    min_tokens: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool = False
    presence_penalty: Finite = Field(0.0, ge=-2, le=2)
    frequency_penalty: Finite = Field(0.0, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIAS, description="token id to what is added to its logit"
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")
    user: str | None = None

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list; InvalidRequestError if it has too many or an empty one."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if len(stop) > MAX_STOP:
            raise InvalidRequestError(f"stop: at most {MAX_STOP} strings", "stop")
        if any(not text for text in stop):
            raise InvalidRequestError("stop: a stop string must not be empty", "stop")
        return stop

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_stream_options(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed when stream is true", "stream_options")
        return self
