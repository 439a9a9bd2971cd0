"""An assistant's message, put together from what its parser finds."""

import secrets
from typing import Any

from app.text.message_parser import MessageDelta


def new_call_id() -> str:
    """What names a tool call until its result comes back."""
    return f"call_{secrets.token_hex(12)}"


class MessageBuilder:
    """Takes in deltas, and gives the whole message in OpenAI's form."""

    def __init__(self, several_calls: bool) -> None:
        """Without `several_calls`, calls after the first are left out."""
        self._several_calls = several_calls
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[dict[str, Any]] = []

    def add(self, delta: MessageDelta) -> list[dict[str, Any]]:
        """Take in news; returns those of tool calls as OpenAI streams them."""
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        calls = [call for call in delta.tool_calls if call.index == 0 or self._several_calls]
        return [self._add_call(call.index, call.name, call.arguments) for call in calls]

    def _add_call(self, index: int, name: str | None, arguments: str) -> dict[str, Any]:
        if name is None:
            self.tool_calls[index]["function"]["arguments"] += arguments
            return {"index": index, "function": {"arguments": arguments}}
        call = {"id": new_call_id(), "type": "function"}
        self.tool_calls.append({**call, "function": {"name": name, "arguments": arguments}})
        return {"index": index, **call, "function": {"name": name, "arguments": arguments}}

    def whole(self) -> dict[str, Any]:
        """The message."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self.reasoning):
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message |= {"content": content or None, "tool_calls": self.tool_calls}
        return message
