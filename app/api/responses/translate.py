"""From requests of OpenAI's Responses to chats."""

from collections.abc import Sequence
from typing import TypeGuard

from ..chat.parts import Fields, assistant_message, image_part, json_schema_format, message, token_fields, tool_call
from ..chat.schema import ChatRequest
from ..edge.body import validate
from .conversation import Conversation
from .items import (
    CallOutputItem,
    Content,
    CustomCallItem,
    FunctionCallItem,
    ImagePart,
    InputItem,
    MessageItem,
    ReasoningItem,
    RefusalPart,
    TextPart,
    reasoning_of,
)
from .schema import ConversationFields, ResponsesRequest, TextFormat
from .toolset import name_for_model, text_arguments

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

Call = FunctionCallItem | CustomCallItem
AssistantItem = ReasoningItem | MessageItem | Call


def to_chat(body: ConversationFields, conversation: Conversation) -> ChatRequest:
    """The chat of a request, whose input is the last part of a conversation."""
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    chat = conversation.tools.fields(body.tool_choice) | {
        "messages": system + messages_of(conversation.items),
        "chat_template_kwargs": body.chat_template_kwargs,
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "response_format": _response_format(body.text.format),
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    if isinstance(body, ResponsesRequest):
        chat |= token_fields(body) | {
            "stop": body.stop,
            "thinking_token_budget": body.thinking_token_budget,
            "logprobs": body.wants_logprobs,
            "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
        }
    return validate(ChatRequest, chat, set())  # what is not known has been told of


def messages_of(items: Sequence[InputItem]) -> list[Fields]:
    """The messages of a conversation. Reasoning, text and calls of the assistant that belong together are one message.

    A call that was cut off is left out, unless it has a result: it was never made.
    """
    results = {item.call_id for item in items if isinstance(item, CallOutputItem)}
    messages: list[Fields] = []
    turn: list[AssistantItem] = []
    for item in items:
        if isinstance(item, Call) and item.status not in (None, "completed") and item.call_id not in results:
            continue
        if turn and not _goes_on(turn, item):
            messages.append(_assistants(turn))
            turn = []
        if _is_assistants(item):
            turn.append(item)
        elif isinstance(item, MessageItem):
            messages.append(message(item.role, _shown(item.content)))
        elif isinstance(item, CallOutputItem):
            messages.append(message("tool", _shown(item.output), tool_call_id=item.call_id))
    return [*messages, _assistants(turn)] if turn else messages


def _is_assistants(item: InputItem) -> TypeGuard[AssistantItem]:
    return isinstance(item, ReasoningItem | Call) or (isinstance(item, MessageItem) and item.role == "assistant")


def _goes_on(turn: list[AssistantItem], item: InputItem) -> bool:
    """Whether an item belongs to the message: the assistant reasons, then it writes and calls, or calls and writes."""
    if isinstance(item, Call):
        return True
    if isinstance(item, MessageItem) and isinstance(turn[-1], Call):
        return _is_assistants(item)
    return _is_assistants(item) and all(isinstance(earlier, ReasoningItem) for earlier in turn)


def _assistants(turn: list[AssistantItem]) -> Fields:
    reasoning = "".join(reasoning_of(item) for item in turn if isinstance(item, ReasoningItem))
    texts = [text for item in turn if isinstance(item, MessageItem) for text in _texts(item.content)]
    return assistant_message(texts, reasoning, [_call(item) for item in turn if isinstance(item, Call)])


def _call(item: Call) -> Fields:
    arguments = text_arguments(item.input) if isinstance(item, CustomCallItem) else item.arguments
    return tool_call(item.call_id, name_for_model(item.name, item.namespace), arguments)


def _texts(content: Content) -> list[str]:
    return [one for one in _shown(content) if isinstance(one, str)]


def _shown(content: Content) -> list[str | Fields]:
    """Texts and images."""
    if isinstance(content, str):
        return [content]
    return [_shown_part(part) for part in content if isinstance(part, TextPart | RefusalPart | ImagePart)]


def _shown_part(part: TextPart | RefusalPart | ImagePart) -> str | Fields:
    if isinstance(part, ImagePart):
        return image_part(part.image_url)
    return part.text if isinstance(part, TextPart) else part.refusal


def images_of(body: ConversationFields, conversation: Conversation) -> list[tuple[str, str]]:
    """The path of each image's field, in order, and the type of its part."""
    num_earlier = len(conversation.items) - (1 if isinstance(body.input, str) else len(body.input))
    named: list[tuple[str, str]] = []
    for at, item in enumerate(conversation.items):
        name = "output" if isinstance(item, CallOutputItem) else "content"
        content = getattr(item, name) if isinstance(item, CallOutputItem | MessageItem) else ""
        for index, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, ImagePart):
                own = f"input[{at - num_earlier}].{name}[{index}].image_url"
                named.append((own if at >= num_earlier else "previous_response_id.image_url", part.type))
    return named


def _response_format(given: TextFormat) -> Fields:
    if given.type != "json_schema":
        return {"type": given.type}
    return json_schema_format(given.schema_, given.name, given.strict)
