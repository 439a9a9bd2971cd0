"""Fields that the requests of several endpoints share."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ...errors import InvalidRequestError
from ..edge.body import Label, RequestBody, Unsupported, hints, refused

MAX_STOP_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 4096
_INT64 = 2**63

IN_MEMORY, ONE_DAY = 300.0, 86400.0
"""Seconds for which OpenAI's two kinds of caches keep a prompt at least, and at most."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]

HINTS = hints(
    "client_metadata metadata parallel_tool_calls prediction prompt_cache_options reasoning_effort request_id "
    "safety_identifier service_tier store stream_interval user verbosity"
)
UNSUPPORTED: Unsupported = refused(
    "allowed_token_ids audio cache_salt chat_template guided_decoding_backend guided_whitespace_pattern "
    "kv_transfer_params mirostat moderation prompt_embeds prompt_logprobs repetition_detection structural_tag "
    "thinking_token_budget truncate_prompt_tokens typical_p web_search_options"
) | {
    "add_special_tokens": (False,),
    "bad_words": ([],),
    "documents": ([],),
    "echo": (False,),
    "early_stopping": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "length_penalty": (1.0, 1),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
"""Fields of OpenAI's and vLLM's completions and chats. What a schema declares is taken all the same."""
ELSEWHERE: Unsupported = refused("max_completion_tokens max_output_tokens max_tokens reasoning_effort stop") | {
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "logprobs": (False,),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "thinking_token_budget": (),
    "top_logprobs": (0,),
}
"""Fields of chats that other APIs have in forms of their own, or not at all."""


class StreamOptions(RequestBody):
    """What a stream contains beside text."""

    unsupported = {"include_obfuscation": (False,)}  # noqa: RUF012 - declared as a class variable
    include_usage: bool = Field(False, description="send token counts in a last event")
    continuous_usage_stats: bool = Field(
        False, description="send token counts in every event, as far as they are known"
    )
    resumable: bool = Field(
        False, description="number the events, and go on for a client that comes back: see /v1/streams/{stream_id}"
    )


class TokenFields(RequestBody):
    """How each token is chosen. Fields that are not given have the model's own default, or the API's."""

    model: Label | None = Field(None, description="the served model's name")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
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
    speculative: bool | Annotated[int, Field(ge=0, lt=2**31)] = Field(
        True, description="whether the next tokens may be guessed, or how many at most in a step; the text is the same"
    )

    cache_retention: float | None = Field(
        None, ge=0, le=ONE_DAY, description="seconds for which the conversation had better stay in the prefix cache"
    )
    prompt_cache_key: Label | None = Field(None, description="as cache_retention 300; which key it is changes nothing")
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        None, description="as cache_retention 300 and 86400"
    )

    @property
    def wished_retention(self) -> float:
        """Seconds; see `GenerateCommand.cache_retention`."""
        if self.cache_retention is not None:
            return self.cache_retention
        if self.prompt_cache_retention == "24h":
            return ONE_DAY
        return IN_MEMORY if self.prompt_cache_retention or self.prompt_cache_key else 0.0

    @property
    def max_drafts(self) -> int | None:
        """Most guesses in a step; None leaves it to the service."""
        if self.speculative is True:
            return None
        return int(self.speculative)


class SamplingFields(TokenFields):
    """How texts are generated, and when to stop."""

    hints = HINTS
    unsupported = UNSUPPORTED
    n: int = Field(1, ge=1)
    stop: str | list[str] = Field(default_factory=list, description=f"strings of up to {MAX_STOP_LENGTH} characters")
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event about usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """See `RequestBody.check`."""
        if max(map(len, self.stop_strings), default=0) > MAX_STOP_LENGTH:
            raise InvalidRequestError(f"stop: at most {MAX_STOP_LENGTH} characters each", "stop")
        if not all(self.stop_strings):
            raise InvalidRequestError("stop: a stop string must not be empty", "stop")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed when stream is true", "stream_options")


def _kind(prompt: Any) -> str | None:
    """Which of the four kinds of prompt a value is. Only that one is then validated."""
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else 0
    return "texts" if isinstance(first, str) else "several_token_ids" if isinstance(first, list) else "token_ids"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Tag("texts")]
    | Annotated[list[TokenId], Tag("token_ids")]
    | Annotated[list[list[TokenId]], Tag("several_token_ids")],
    Discriminator(
        _kind,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a text, several texts, token ids, or several lists of token ids",
    ),
]
