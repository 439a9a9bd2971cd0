"""The items of a conversation, as clients send them, and as the server sent them before."""

import base64
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Tag, TypeAdapter

from ..edge.body import Label, RequestBody, Unsupported, hints, refused
from ..generation.kinds import Unknown, by_type, refuse_unknown
from .tools import Tool, check_tools

_IN_ITEMS: Unsupported = {
    "async": (False,),
    "caller": ({"type": "direct"},),
}
TextType = Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(RequestBody):
    """A piece of text."""

    hints = hints("annotations logprobs")
    type: TextType
    text: str


class RefusalPart(RequestBody):
    """What a model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(RequestBody):
    """An image that the user or a tool shows, for models that read images."""

    hints = hints("detail")
    unsupported = refused("file_id")
    type: Literal["input_image"]
    image_url: str | None = Field(None, description="a data URL: PNG, JPEG, WebP or GIF, in base64")


Part = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("input_image")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[Unknown, Tag("unknown")],
    by_type("refusal", "input_image", others=dict.fromkeys(get_args(TextType), "text")),
]
Content = str | list[Part]


class Item(RequestBody):
    """Base of all items."""

    unsupported = _IN_ITEMS
    id: Label | None = Field(None, description="changes nothing")
    status: Status | None = Field(None, description="a call that is incomplete and has no output is left out")


class MessageItem(Item):
    """A message."""

    hints = hints("phase")
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(Item):
    """Base of calls that the model made. It knows a tool of a namespace by both names."""

    call_id: Label
    name: Label
    namespace: Label | None = None


class FunctionCallItem(CallItem):
    """A call of a function."""

    type: Literal["function_call"]
    arguments: str = Field(description="JSON text")


class CustomCallItem(CallItem):
    """A call of a tool that takes any text."""

    type: Literal["custom_tool_call"]
    input: str


class CallOutputItem(Item):
    """The result of a call."""

    hints = hints("name namespace")
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Label
    output: Content


class ReasoningItem(Item):
    """What the model thought. It is read from the first of these fields that holds a text."""

    type: Literal["reasoning"]
    content: list[TextPart] = Field(default_factory=list)
    encrypted_content: str | None = Field(None, description="as this server wrote it; another one's is ignored")
    summary: list[TextPart] = Field(default_factory=list)


class ItemReference(RequestBody):
    """An item of a stored response."""

    type: Literal["item_reference"]
    id: Label


class ToolsItem(Item):
    """More tools."""

    type: Literal["additional_tools"]
    role: Literal["developer"] = "developer"
    tools: list[Tool]


_TAGS = (
    "message",
    "function_call",
    "custom_tool_call",
    "function_call_output",
    "reasoning",
    "item_reference",
    "additional_tools",
)
InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[ToolsItem, Tag("additional_tools")]
    | Annotated[Unknown, Tag("unknown")],
    by_type(*_TAGS, default="message", others={"custom_tool_call_output": "function_call_output"}),
]
ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[InputItem])
"""Reads stored items."""


_MARK = "text:"


def wrap_reasoning(text: str) -> str:
    """Reasoning for clients that send back nothing else: encoded as `encrypted_content`, though it is no secret."""
    return _MARK + base64.b64encode(text.encode()).decode()


def reasoning_of(item: ReasoningItem) -> str:
    """The text of an item, in whichever form the client has kept it."""
    wrapped = item.encrypted_content or ""
    texts = [part.text for part in item.content]
    if not texts and wrapped.startswith(_MARK):
        with suppress(ValueError):
            texts = [base64.b64decode(wrapped.removeprefix(_MARK), validate=True).decode()]
    return "".join(texts or (part.text for part in item.summary))


def check_item(item: Any, path: str) -> None:
    """Raise UnsupportedError for content of unknown types."""
    if isinstance(item, MessageItem):
        refuse_unknown(item.content, f"{path}.content", "content")
    elif isinstance(item, CallOutputItem):
        refuse_unknown(item.output, f"{path}.output", "content")
    elif isinstance(item, ToolsItem):
        check_tools(item.tools, f"{path}.tools")
