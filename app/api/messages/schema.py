"""The requests of POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from app.api.chat.schema import FunctionName
from app.api.edge.body import Label, RequestBody, Unsupported, refused
from app.api.generation.fields import TokenFields
from app.api.generation.kinds import Unknown, by_type, refuse_unknown
from app.errors import InvalidRequestError, UnsupportedError

_IN_REQUESTS: Unsupported = refused(
    "container context_management diagnostics inference_geo output_format thread user_profile_id workspace_id"
) | {
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
}
_IN_BLOCKS: Unsupported = {
    "caller": ({"type": "direct"},),
    "citations": ([],),
    "toolset_name": (),
}
_IN_TOOLS: Unsupported = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "eager_input_streaming": (True, False),
    "input_examples": ([],),
}


class CacheControl(RequestBody):
    """A request for caching. Prefixes of prompts are cached in any case."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cached(RequestBody):
    """Base of what may have `cache_control`."""

    unsupported = _IN_BLOCKS
    cache_control: CacheControl | None = Field(None, description="changes nothing: prefixes are cached in any case")


class TextBlock(Cached):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Cached):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", description="changes nothing")


class ToolUseBlock(Cached):
    """What the model called."""

    type: Literal["tool_use"]
    id: Label
    name: FunctionName
    input: dict[str, Any]


ResultBlock = Annotated[Annotated[TextBlock, Tag("text")] | Annotated[Unknown, Tag("unknown")], by_type("text")]


class ToolResultBlock(Cached):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: str | list[ResultBlock] = ""
    is_error: bool = Field(False, description='the model reads "Error: " before the content')


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("text", "thinking", "tool_use", "tool_result"),
]
_KINDS_OF = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class Turn(RequestBody):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def check_content(self, path: str) -> None:
        """Raise InvalidRequestError for blocks that are unsupported, or not allowed for the role."""

        def check(block: Any, where: str) -> None:
            if not isinstance(block, _KINDS_OF[self.role]):
                raise InvalidRequestError(f"{where}: {block.type} is not for the role {self.role}", where)
            if isinstance(block, ToolResultBlock):
                refuse_unknown(block.content, f"{where}.content", "content")

        refuse_unknown(self.content, f"{path}.content", "content", check)


class CustomTool(Cached):
    """A tool that the client runs."""

    unsupported = _IN_TOOLS
    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="a JSON schema")
    strict: bool | None = None


Tool = Annotated[
    Annotated[CustomTool, Tag("custom")] | Annotated[Unknown, Tag("unknown")], by_type("custom", default="custom")
]


class ToolChoice(RequestBody):
    """Whether the model calls tools, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(RequestBody):
    """Whether the model reasons, if its chat template has a switch for it (`enable_thinking`)."""

    type: Literal["disabled", "adaptive", "enabled"]
    budget_tokens: int | None = None


class OutputFormat(RequestBody):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestBody):
    """Options of the output."""

    unsupported = {"effort": ()}  # noqa: RUF012 - declared as a class variable
    format: OutputFormat | None = None


class Metadata(RequestBody):
    """About the caller."""

    user_id: Label | None = Field(None, description="changes nothing")


class ConversationFields(RequestBody):
    """How a conversation becomes a prompt."""

    unsupported = _IN_REQUESTS
    model: Label | None = Field(None, description="the served model's name")
    system: str | list[TextBlock] | None = None
    messages: list[Turn] = Field(min_length=1, description="a last turn of the assistant is continued")
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = Field(None, description="changes nothing: prefixes are cached in any case")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """See `RequestBody.check`."""
        for index, turn in enumerate(self.messages):
            turn.check_content(f"messages[{index}]")
        refuse_unknown(self.tools, "tools", "a tool")
        if self.tool_choice is not None and (self.tool_choice.type == "tool") != (self.tool_choice.name is not None):
            raise InvalidRequestError("tool_choice.name: the type 'tool' has one, others have none", "tool_choice.name")
        if self.thinking is not None and self.thinking.type == "enabled":
            raise UnsupportedError(
                "thinking: 'enabled' is not supported, because its budget_tokens cannot be kept; "
                "'adaptive' and 'disabled' are",
                "thinking",
            )


class CountTokensRequest(ConversationFields):
    """Count the tokens of a conversation."""

    model_config = ConfigDict(json_schema_extra={"example": {"messages": [{"role": "user", "content": "Say hello."}]}})


class MessagesRequest(ConversationFields, TokenFields):
    """Answer a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"max_tokens": 32, "messages": [{"role": "user", "content": "Say hello."}], "temperature": 0}
        }
    )

    max_tokens: int = Field(ge=1, lt=2**31, description="the end of the model's context may come earlier")
    stop_sequences: list[str] = Field(default_factory=list)
    metadata: Metadata | None = None
