"""The blocks of which turns of Anthropic's conversations are made, and the tools that they name."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from ...errors import InvalidRequestError
from ..chat.schema import FunctionName
from ..edge.body import Label, RequestBody, hints, refused
from ..generation.cache_control import CacheControl
from ..generation.kinds import HostedTool, Unknown, by_type, refuse_unknown

_IN_BLOCKS = hints("caller citations signature toolset_name")
_IN_TOOLS = hints("defer_loading eager_input_streaming")
_HOSTED_TOOLS = ("advisor_", "code_execution_", "tool_search_tool_", "web_fetch_", "web_search_")
"""Beginnings of the types of tools that Anthropic's servers run."""


class ContentBlock(RequestBody):
    """Base of all blocks. What the server or other servers add to them changes nothing."""

    hints = _IN_BLOCKS
    cache_control: CacheControl | None = None


class TextBlock(ContentBlock):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageSource(RequestBody):
    """Where an image is. Only what comes in base64 is read: nothing is fetched."""

    unsupported = refused("file_id")
    type: str
    media_type: str | None = None
    data: str | None = Field(None, description="in base64: PNG, JPEG, WebP or GIF")
    url: str | None = None


class ImageBlock(ContentBlock):
    """An image that the user or a tool shows, for models that read images."""

    type: Literal["image"]
    source: ImageSource

    @property
    def as_url(self) -> str | None:
        """As a data URL; another URL as it is, to be refused."""
        if self.source.data is None:
            return self.source.url
        return f"data:{self.source.media_type or ''};base64,{self.source.data}"


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
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("text", "image", "tool_reference"),
]


class ToolResultBlock(ContentBlock):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: str | list[ResultBlock] = ""
    is_error: bool = Field(False, description='the model reads "Error: " before the content')


class CustomTool(RequestBody):
    """A tool that the client runs."""

    hints = _IN_TOOLS
    cache_control: CacheControl | None = None
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


class NamedTool(RequestBody):
    """A tool of the conversation, by its name."""

    type: Literal["tool_reference"]
    name: str


class DefinedTool(RequestBody):
    """A tool that comes with its definition."""

    type: Literal["tool_definition"]
    definition: Tool


class ToolChangeBlock(ContentBlock):
    """The model may call a tool from here on, or may not. It is told of those that it may call at the end."""

    type: Literal["tool_addition", "tool_removal"]
    tool: Annotated[
        Annotated[NamedTool, Tag("tool_reference")]
        | Annotated[DefinedTool, Tag("tool_definition")]
        | Annotated[Unknown, Tag("unknown")],
        by_type("tool_reference", "tool_definition"),
    ]


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ToolChangeBlock, Tag("tool_change")]
    | Annotated[Unknown, Tag("unknown")],
    by_type(
        *("text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result"),
        others=dict.fromkeys(("tool_addition", "tool_removal"), "tool_change"),
    ),
]
_KINDS_OF = {
    "user": (TextBlock, ImageBlock, ToolResultBlock, ToolChangeBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock, ToolChangeBlock),
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
            if isinstance(block, ToolChangeBlock):
                given = [block.tool, *([block.tool.definition] if isinstance(block.tool, DefinedTool) else [])]
                refuse_unknown(given, f"{where}.tool", "a tool")

        refuse_unknown(self.content, f"{path}.content", "content", check)
