"""The requests of POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from app.api.chat.schema import FunctionName
from app.api.edge.body import Label, RequestBody, Unsupported, hints, refused
from app.api.generation.fields import Effort, TokenFields
from app.api.generation.kinds import HostedTool, Unknown, by_type, refuse_unknown
from app.errors import InvalidRequestError

_HINTS = hints(
    "billing_policy cache_control diagnostics fallback_credit_token fallbacks metadata service_tier speed "
    "user_profile_id workspace_id"
)
_UNSUPPORTED: Unsupported = refused("compaction container inference_geo thread") | {"mcp_servers": ([],)}
_IN_BLOCKS = hints("cache_control caller citations signature toolset_name")
_IN_TOOLS = hints("cache_control defer_loading eager_input_streaming")
_HOSTED_TOOLS = ("advisor_", "code_execution_", "tool_search_tool_", "web_fetch_", "web_search_")
"""Beginnings of the types of tools that Anthropic's servers run."""


class ContentBlock(RequestBody):
    """Base of all blocks. What the server or other servers add to them changes nothing."""

    hints = _IN_BLOCKS


class TextBlock(ContentBlock):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(ContentBlock):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(ContentBlock):
    """What another model thought, and only that one can read. It is left out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(ContentBlock):
    """What the model called, by whatever name."""

    type: Literal["tool_use"]
    id: Label
    name: str
    input: dict[str, Any]


class ToolReferenceBlock(ContentBlock):
    """A tool that a search has found. The model reads its name, and knows all tools in any case."""

    type: Literal["tool_reference"]
    tool_name: str

    @property
    def text(self) -> str:
        """What the model reads."""
        return self.tool_name


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("text", "tool_reference"),
]


class ToolResultBlock(ContentBlock):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: str | list[ResultBlock] = ""
    is_error: bool = Field(False, description='the model reads "Error: " before the content')


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
]
_KINDS_OF = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
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


class CustomTool(RequestBody):
    """A tool that the client runs."""

    hints = _IN_TOOLS
    unsupported = {"allowed_callers": (["direct"],)}  # noqa: RUF012 - declared as a class variable
    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="a JSON schema")
    input_examples: list[dict[str, Any]] = Field(default_factory=list, description="told with the description")
    strict: bool | None = None


Tool = Annotated[
    Annotated[CustomTool, Tag("custom")] | Annotated[HostedTool, Tag("hosted")] | Annotated[Unknown, Tag("unknown")],
    by_type("custom", default="custom", hosted=_HOSTED_TOOLS),
]


class ToolChoice(RequestBody):
    """Whether the model calls tools, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(RequestBody):
    """Whether the model reasons, if its chat template has a switch for it (`enable_thinking`)."""

    hints = frozenset(("block_binding", "display"))
    type: Literal["disabled", "adaptive", "enabled"]
    budget_tokens: int | None = Field(None, ge=1, description="most tokens of reasoning; then the answer begins")


class OutputFormat(RequestBody):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestBody):
    """Options of the output."""

    hints = frozenset(("task_budget",))
    effort: Effort | None = Field(None, description="a hint, for chat templates that know it")
    format: OutputFormat | None = None


class ContextEdit(RequestBody):
    """Leaves old parts out of a long prompt. It is not applied: the model knows more then."""

    model_config = ConfigDict(extra="ignore")
    type: Annotated[str, Field(pattern="^clear_(thinking|tool_uses)_")]


class ContextManagement(RequestBody):
    """Edits of the conversation by the server."""

    edits: list[ContextEdit] = Field(default_factory=list)


class ConversationFields(RequestBody):
    """How a conversation becomes a prompt."""

    hints = _HINTS
    unsupported = _UNSUPPORTED
    model: Label | None = Field(None, description="the served model's name")
    system: str | list[TextBlock] | None = None
    messages: list[Turn] = Field(min_length=1, description="a last turn of the assistant is continued")
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="the older name of output_config.format")
    context_management: ContextManagement | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """See `RequestBody.check`."""
        for index, turn in enumerate(self.messages):
            turn.check_content(f"messages[{index}]")
        refuse_unknown(self.tools, "tools", "a tool")
        if self.tool_choice is not None and (self.tool_choice.type == "tool") != (self.tool_choice.name is not None):
            raise InvalidRequestError("tool_choice.name: the type 'tool' has one, others have none", "tool_choice.name")
        if self.thinking is not None and (self.thinking.type == "enabled") != (self.thinking.budget_tokens is not None):
            where = "thinking.budget_tokens"
            raise InvalidRequestError(f"{where}: the type 'enabled' has it, others do not", where)


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
