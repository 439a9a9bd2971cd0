"""From requests of OpenAI's Responses to chats."""

from typing import Any, TypeGuard

from app.api.chat.parts import (
    Fields,
    assistant_message,
    function_tool,
    json_schema_format,
    text_parts,
    token_fields,
    tool_call,
)
from app.api.chat.schema import ChatRequest
from app.api.edge.body import validate
from app.api.responses.schema import (
    Content,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputItem,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    RefusalPart,
    ResponsesRequest,
    TextFormat,
    TextPart,
)

NAMES = {
    "messages": "input",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.json_schema.name": "text.format.name",
    "response_format": "text.format",
    "tools": "tools",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""The names of a chat's fields in this API."""

AssistantItem = ReasoningItem | MessageItem | FunctionCallItem


def to_chat(body: ResponsesRequest, messages: list[Fields]) -> ChatRequest:
    """The chat of a request. `messages`: its whole conversation, without the instructions."""
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    chat = token_fields(body) | {
        "messages": system + messages,
        "chat_template_kwargs": body.chat_template_kwargs,
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "response_format": _response_format(body.text.format),
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
        "tools": [_tool(tool) for tool in body.tools if isinstance(tool, FunctionTool)],
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    return validate(ChatRequest, chat)


def messages_of(given: str | list[InputItem]) -> list[Fields]:
    """The messages of an input. Consecutive reasoning, text and calls of the assistant are one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Fields] = []
    turn: list[AssistantItem] = []
    for item in given:
        if turn and not _goes_on(turn, item):
            messages.append(_assistants(turn))
            turn = []
        if _is_assistants(item):
            turn.append(item)
        elif isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": text_parts(_texts(item.content))})
        elif isinstance(item, FunctionCallOutputItem):
            output = text_parts(_texts(item.output))
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    return [*messages, _assistants(turn)] if turn else messages


def _is_assistants(item: InputItem) -> TypeGuard[AssistantItem]:
    return isinstance(item, ReasoningItem | FunctionCallItem) or (
        isinstance(item, MessageItem) and item.role == "assistant"
    )


def _goes_on(turn: list[AssistantItem], item: InputItem) -> bool:
    """Whether an item belongs to the message: the assistant reasons, then writes, then calls."""
    if isinstance(item, FunctionCallItem):
        return True
    return _is_assistants(item) and all(isinstance(earlier, ReasoningItem) for earlier in turn)


def _assistants(turn: list[AssistantItem]) -> Fields:
    reasoning = [part.text for item in turn if isinstance(item, ReasoningItem) for part in item.content or item.summary]
    texts = [text for item in turn if isinstance(item, MessageItem) for text in _texts(item.content)]
    calls = [tool_call(i.call_id, i.name, i.arguments) for i in turn if isinstance(i, FunctionCallItem)]
    return assistant_message(texts, "".join(reasoning), calls)


def _texts(content: Content) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = [part.text for part in content if isinstance(part, TextPart)]
    return texts + [part.refusal for part in content if isinstance(part, RefusalPart)]


def _response_format(given: TextFormat) -> Fields:
    if given.type != "json_schema":
        return {"type": given.type}
    return json_schema_format(given.schema_, given.name, given.strict)


def _tool(tool: FunctionTool) -> Fields:
    return function_tool(tool.name, tool.description, tool.parameters, tool.strict)


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return choice
