"""The messages of a chat."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.body import Label, RequestBody, Unsupported, hints, refused
from ..generation.cache_control import CacheControl

_HINTS = hints("annotations index parsed reasoning_details")
"""What clients make of an answer, and send back with it."""
_UNSUPPORTED: Unsupported = refused("audio file function_call input_audio video_url")


class FunctionCall(RequestBody):
    """The function that the model called, by whatever name."""

    hints = frozenset(("parsed_arguments",))
    name: str
    arguments: str = Field(description="JSON, or the beginning of it, where the model was cut off")


class ToolCall(RequestBody):
    """A call that the model made earlier in the chat."""

    hints = _HINTS
    cache_control: CacheControl | None = None
    id: Label
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it. The arguments may have been cut: what the server gave out, it takes back."""
        function = {"name": self.function.name, "arguments": self.function.arguments or "{}"}
        return {"id": self.id, "type": self.type, "function": function}


class ImageUrl(RequestBody):
    """An image."""

    hints = hints("detail format media_type")
    url: str = Field(description="a data URL: PNG, JPEG, WebP or GIF, in base64")


class ContentPart(RequestBody):
    """A part of a message: text, an image that the user or a tool shows, or a refusal of the assistant."""

    hints = _HINTS
    unsupported = _UNSUPPORTED
    type: str
    text: str | None = None
    refusal: str | None = Field(None, description="of the type refusal, of the assistant")
    cache_control: CacheControl | None = None
    image_url: ImageUrl | None = Field(None, description="of the type image_url, for models that read images")

    @property
    def is_image(self) -> bool:
        return self.type == "image_url"

    def check_kind(self, path: str, role: str) -> None:
        """Raise InvalidRequestError for what is neither text nor an image."""
        if self.is_image and role in ("user", "tool"):
            return
        if self.type != "text" and (self.type, role) != ("refusal", "assistant"):
            raise UnsupportedError(f"{path}: content of type {self.type!r:.40} is not supported", path)
        for name in ("text", "refusal"):
            if (getattr(self, name) is not None) != (name == self.type):
                fault = "Field required" if name == self.type else f"not of the type {self.type}"
                raise InvalidRequestError(f"{path}.{name}: {fault}", f"{path}.{name}")

    def for_template(self, role: str, marks: Iterator[str]) -> dict[str, Any]:
        """As chat templates expect it. An image is the next mark where a template may read texts alone.

        Of a user's image, templates read the type.
        """
        if self.is_image:
            return {"type": "image" if role == "user" else "text", "text": next(marks)}
        return {"type": "text", "text": getattr(self, self.type)}


class Message(RequestBody):
    """One turn of a chat."""

    hints = _HINTS
    unsupported = _UNSUPPORTED
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = Field(None, description="a text, or parts")
    # Templates may print the name, so nothing in it may look like a control token.
    name: Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,128}$")] | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list, description="of the assistant")
    tool_call_id: Label | None = Field(None, description="of the call whose result this is")
    reasoning_content: str | None = Field(None, description="of the assistant")
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    refusal: str | None = Field(None, description="of the assistant, instead of content")
    cache_control: CacheControl | None = None

    def for_template(self, marks: Iterator[str]) -> dict[str, Any]:
        """The message as chat templates expect it. `marks`: see `ContentPart.for_template`."""
        message: dict[str, Any] = {"role": self.role, "content": self.content or self.refusal or ""}
        if isinstance(self.content, list) and self.content:
            message["content"] = [part.for_template(self.role, marks) for part in self.content]
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        others = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
        }
        return message | {name: value for name, value in others.items() if value is not None}

    @property
    def markable(self) -> list[RequestBody]:
        """The message and all of it that may have a `cache_control`."""
        return [self, *self.tool_calls, *(self.content if isinstance(self.content, list) else [])]

    @property
    def images(self) -> list[tuple[int, ContentPart]]:
        """The images of the content, with their places in it."""
        parts = self.content if isinstance(self.content, list) else []
        return [(index, part) for index, part in enumerate(parts) if part.is_image]

    def check_content(self, path: str) -> None:
        """Raise InvalidRequestError for content of unknown types, and for calls and reasoning of others than the
        assistant."""
        for name in ("tool_calls", "reasoning_content", "reasoning", "refusal"):
            if getattr(self, name) and self.role != "assistant":
                raise InvalidRequestError(f"{path}.{name}: only the assistant has it", f"{path}.{name}")
        if self.content is None and self.role not in ("assistant", "tool"):
            raise InvalidRequestError(f"{path}.content: Field required", f"{path}.content")
        for index, part in enumerate(self.content if isinstance(self.content, list) else []):
            part.check_kind(f"{path}.content[{index}]", self.role)
