"""POST /v1/chat/completions"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.schemas.common import Label, RequestBody, SamplingFields
from app.api.schemas.structured import StructuredFields
from app.api.schemas.unsupported import IN_MESSAGES, IN_REQUESTS
from app.errors import InvalidRequestError, UnsupportedError


class ContentPart(RequestBody):
    """A piece of a message; only text is supported."""

    unsupported = IN_MESSAGES
    type: str
    text: str | None = None


class Message(RequestBody):
    """One turn of a chat."""

    unsupported = IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = Field(None, description="a text, or parts of type text")
    # Templates may print the name: nothing in it may look like a control token.
    name: Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")] | None = None
    tool_call_id: Label | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        return self.model_dump(exclude_none=True, exclude=set(self.model_extra or ()))

    def check_content(self, path: str) -> None:
        """Raise InvalidRequestError unless the content is text."""
        if self.content is None:
            raise InvalidRequestError(f"{path}.content: Field required", f"{path}.content")
        for index, part in enumerate(self.content if isinstance(self.content, list) else []):
            where = f"{path}.content[{index}]"
            if part.type != "text":
                raise UnsupportedError(f"{where}: content of type {part.type!r:.40} is not supported", where)
            if part.text is None:
                raise InvalidRequestError(f"{where}.text: Field required", f"{where}.text")


class ChatFields(RequestBody):
    """How a chat becomes a prompt."""

    unsupported = IN_REQUESTS
    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = Field(None, description="true, unless the final message is continued")
    continue_final_message: bool = False
    chat_template: str | None = Field(None, description="only where the server allows it")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        for index, message in enumerate(self.messages):
            message.check_content(f"messages[{index}]")
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        if self.messages[-1].role != "assistant":
            raise InvalidRequestError(
                "continue_final_message: the final message is not the assistant's", "continue_final_message"
            )


class ChatRequest(ChatFields, StructuredFields, SamplingFields):
    """Answer a chat."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}}
    )

    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="by default what the context leaves")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="the newer name of max_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, description="most probable tokens to report at each position")

    def check(self) -> None:
        """See `RequestBody.check`."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequestError("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
