"""The requests of POST /v1/responses and /v1/responses/input_tokens"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.body import Label, RequestBody, Unsupported, hints, refused
from ..generation.fields import ELSEWHERE, UNSUPPORTED, Effort, TokenFields
from ..generation.kinds import Unknown, refuse_unknown
from ..generation.structured import GuidedFields
from .items import InputItem, check_item
from .tools import Tool, ToolChoice, check_tools

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_IN_CONVERSATIONS: Unsupported = refused("access_programs background_options conversation image moderation prompt") | {
    "context_management": ([],)
}
_INSTEAD = {
    "logprobs": f"top_logprobs and {LOGPROBS!r} in include",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
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
_HINTS = hints("client_metadata prompt_cache_options service_tier")
_COMES_BACK = "changes nothing, and comes back with the response"


class TextFormat(RequestBody):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestBody):
    """Options of the text."""

    hints = hints("verbosity")
    format: TextFormat = TextFormat()


class ReasoningConfig(RequestBody):
    """How much the model reasons."""

    hints = hints("context generate_summary mode")
    effort: Effort | None = Field(None, description="a hint, for chat templates that know it")
    summary: Label | None = Field(None, description=_COMES_BACK)


class StreamOptions(RequestBody):
    """What a stream contains beside events."""

    hints = hints("include_obfuscation")


class ConversationFields(RequestBody):
    """How a conversation becomes a prompt."""

    unsupported = _IN_CONVERSATIONS
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


class ResponsesRequest(ConversationFields, TokenFields, GuidedFields):
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

    hints = _HINTS
    unsupported = _IN_CONVERSATIONS | UNSUPPORTED | ELSEWHERE
    instead = _INSTEAD
    stop: str | list[str] = Field(default_factory=list, description="as chats have it")
    thinking_token_budget: int | None = Field(None, ge=1, description="as chats have it")
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31, description="at most what the context leaves")
    max_tool_calls: int | None = Field(None, ge=1, description="changes nothing: it counts calls of hosted tools")
    include: list[Included] = Field(default_factory=list, description="what is not there is not included")
    top_logprobs: int | None = Field(None, ge=0, description=f"needs {LOGPROBS} in include")
    background: bool = Field(False, description="answer at once, and keep the response for a later GET")
    store: bool | None = Field(None, description="keep the response, for a while; true where the server can")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict, description="comes back with the response"
    )
    stream_options: StreamOptions | None = None
    user: Label | None = Field(None, description=_COMES_BACK)
    safety_identifier: Label | None = Field(None, description=_COMES_BACK)

    @property
    def wants_logprobs(self) -> bool:
        """Whether logprobs are asked for."""
        return LOGPROBS in self.include

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequestError(f"top_logprobs needs {LOGPROBS} in include", "top_logprobs")
