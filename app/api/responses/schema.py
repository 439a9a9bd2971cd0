"""The requests of POST /v1/responses and /v1/responses/input_tokens"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.edge.body import Label, RequestBody, Unsupported, refused
from app.api.generation.fields import Effort, TokenFields
from app.api.generation.kinds import Unknown, refuse_unknown
from app.api.responses.items import InputItem, check_item
from app.api.responses.tools import Tool, ToolChoice, check_tools
from app.errors import InvalidRequestError, UnsupportedError

_IN_REQUESTS: Unsupported = refused("access_programs background_options conversation image moderation prompt") | {
    "context_management": ([],),
    "n": (1,),
}
Included = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_HINT = "changes nothing"


class TextFormat(RequestBody):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestBody):
    """Options of the text."""

    format: TextFormat = TextFormat()
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=_HINT)


class ReasoningConfig(RequestBody):
    """How much the model reasons."""

    effort: Effort | None = Field(None, description="only where the chat template has it")
    summary: Literal["auto", "concise", "detailed", "none"] | None = Field(None, description=_HINT)
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(None, description=_HINT)
    context: Literal["auto", "current_turn", "all_turns"] | None = Field(None, description=_HINT)


class StreamOptions(RequestBody):
    """What a stream contains beside events."""

    include_obfuscation: bool | None = Field(None, description=_HINT)


class ConversationFields(RequestBody):
    """How a conversation becomes a prompt."""

    unsupported = _IN_REQUESTS
    model: Label | None = Field(None, description="the served model's name")
    input: str | Annotated[list[InputItem], Field(min_length=1)] = Field(description="a text, or items")
    instructions: str | None = Field(None, description="a system message; not kept for the next response")
    previous_response_id: Label | None = Field(None, description="a response that was stored")
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="changes nothing: an input that is too long is refused"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """See `RequestBody.check`."""
        refuse_unknown(self.input, "input", "an item", check_item)
        check_tools(self.tools, "tools")
        if isinstance(self.tool_choice, Unknown):
            raise UnsupportedError(f"tool_choice: {self.tool_choice.type!r:.60} is not supported", "tool_choice")


class InputTokensRequest(ConversationFields):
    """Count the tokens of an input."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": "Say hello."}})


class ResponsesRequest(ConversationFields, TokenFields):
    """Answer an input, which may continue an earlier response."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Say hello.", "max_output_tokens": 32},
                {
                    "instructions": "Be brief.",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}],
                    "temperature": 0,
                    "stream": True,
                },
            ]
        }
    )

    max_output_tokens: int | None = Field(None, ge=1, lt=2**31, description="by default what the context leaves")
    max_tool_calls: int | None = Field(None, ge=1, description="changes nothing: it counts calls of hosted tools")
    include: list[Included] = Field(default_factory=list, description="of what is not there, nothing is included")
    top_logprobs: int | None = Field(None, ge=0, description=f"needs {LOGPROBS} in include")
    background: bool = Field(False, description="answer at once, and keep the response for a later GET")
    store: bool | None = Field(None, description="keep the response, for a while; true where the server can")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict, description="comes back with the response"
    )
    stream_options: StreamOptions | None = None
    client_metadata: dict[str, Any] | None = Field(None, description=_HINT)
    user: Label | None = Field(None, description=_HINT)
    safety_identifier: Label | None = Field(None, description=_HINT)
    prompt_cache_key: Label | None = Field(None, description=_HINT)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=_HINT)
    prompt_cache_retention: str | None = Field(None, description=_HINT)
    service_tier: str | None = Field(None, description=_HINT)

    @property
    def wants_logprobs(self) -> bool:
        """Whether logprobs are asked for."""
        return LOGPROBS in self.include

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequestError(f"top_logprobs needs {LOGPROBS} in include", "top_logprobs")
        if self.background and self.stream:
            raise UnsupportedError(
                "background and stream exclude each other here: ask for the response by GET", "stream"
            )
