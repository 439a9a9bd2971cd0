"""POST /v1/chat/completions"""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from app.api.schemas.common import RequestBody, SamplingFields
from app.errors import InvalidRequestError, UnsupportedError

_TEXT_PARTS = ("text",)


class Message(RequestBody):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = Field(None, description="a text, or parts of type text")
    name: str | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> "Message":
        for part in self.content if isinstance(self.content, list) else []:
            kind = part.get("type")
            if kind not in _TEXT_PARTS:
                raise UnsupportedError(f"message content of type {kind} is not supported by this model", "messages")
            if not isinstance(part.get("text"), str):
                raise InvalidRequestError("a text part needs a text", "messages")
        return self


class ChatFields(RequestBody):
    """How a chat becomes a prompt."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = Field(None, description="only where the server allows it")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_continuation(self) -> "ChatFields":
        asked_for_prompt = self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set
        if self.continue_final_message and asked_for_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        return self


class ChatRequest(ChatFields, SamplingFields):
    """Answer a chat."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}}
    )

    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="by default what the context leaves")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="the newer name of max_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
