"""The requests of POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ...errors import InvalidRequestError
from ..chat.schema import FunctionName
from ..edge.body import Label, RequestBody, Unsupported, hints, refused
from ..generation.cache_control import CacheControl, longest_wish
from ..generation.fields import ELSEWHERE, UNSUPPORTED, Effort, TokenFields
from ..generation.kinds import refuse_unknown
from ..generation.structured import GuidedFields
from .blocks import TextBlock, Tool, ToolResultBlock, Turn

_HINTS = hints(
    "billing_policy diagnostics fallback_credit_token fallbacks metadata service_tier speed user_profile_id "
    "workspace_id"
)
_IN_CONVERSATIONS: Unsupported = refused("compaction container inference_geo thread") | {"mcp_servers": ([],)}
_INSTEAD = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}


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
    unsupported = _IN_CONVERSATIONS
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
    cache_control: CacheControl | None = Field(None, description="here and elsewhere: the longest time counts")

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


class MessagesRequest(ConversationFields, TokenFields, GuidedFields):
    """Answer a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"max_tokens": 32, "messages": [{"role": "user", "content": "Say hello."}], "temperature": 0}
        }
    )

    unsupported = _IN_CONVERSATIONS | UNSUPPORTED | ELSEWHERE
    instead = _INSTEAD
    max_tokens: int = Field(ge=1, lt=2**31, description="the end of the model's context may come earlier")
    stop_sequences: list[str] = Field(default_factory=list)

    @property
    def wished_retention(self) -> float:
        """See `TokenFields`; marks in the conversation count as well."""
        content = [self.system, *(turn.content for turn in self.messages)]
        blocks = [block for blocks in content if isinstance(blocks, list) for block in blocks]
        results = [block.content for block in blocks if isinstance(block, ToolResultBlock)]
        inner = [block for blocks in results if isinstance(blocks, list) for block in blocks]
        return max(super().wished_retention, longest_wish([self, *blocks, *inner, *self.tools]))
