"""From requests of Anthropic's Messages to chats."""

from typing import Any

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
from app.api.messages.schema import (
    ConversationFields,
    CustomTool,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from app.errors import InvalidRequestError

NAMES = {
    "stop_token_ids": "stop_token_ids",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "tools": "tools",
}
"""The names of a chat's fields in this API."""


def to_chat(body: ConversationFields) -> ChatRequest:
    """The chat of a request."""
    system = [] if body.system is None else [{"role": "system", "content": text_parts(_texts(body.system))}]
    messages = system + [message for turn in body.messages for message in _messages(turn)]
    chat: Fields = {"messages": messages, "chat_template_kwargs": _template_kwargs(body), **_tool_fields(body)}
    if body.messages[-1].role == "assistant":
        if "tool_calls" in messages[-1]:
            raise InvalidRequestError("messages: a last turn of the assistant cannot call tools", "messages")
        chat["continue_final_message"] = True
    if body.output_config is not None and body.output_config.format is not None:
        chat["response_format"] = json_schema_format(body.output_config.format.schema_, "output")
    if isinstance(body, MessagesRequest):
        chat |= token_fields(body) | {"stop": body.stop_sequences}
    return validate(ChatRequest, chat)


def _messages(turn: Turn) -> list[Fields]:
    """The messages of a turn. Each result of a tool is a message of its own, and so is the text between them."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role == "assistant":
        return [_assistants(turn.content)]
    messages: list[Fields] = []
    said: list[str] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            said.append(block.text)
        elif isinstance(block, ToolResultBlock):
            if said:
                messages.append({"role": turn.role, "content": text_parts(said)})
            said = []
            messages.append(_result(block))
    if said or not messages:
        messages.append({"role": turn.role, "content": text_parts(said)})
    return messages


def _assistants(blocks: list[Any]) -> Fields:
    reasoning = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [tool_call(block.id, block.name, block.input) for block in blocks if isinstance(block, ToolUseBlock)]
    return assistant_message(_texts(blocks), reasoning, calls)


def _result(block: ToolResultBlock) -> Fields:
    texts = _texts(block.content)
    if block.is_error:
        texts = ["Error: " + "".join(texts[:1]), *texts[1:]]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text_parts(texts)}


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [block.text for block in content if isinstance(block, TextBlock)]


def _template_kwargs(body: ConversationFields) -> Fields:
    """Variables of the chat template, where `enable_thinking` is the switch for reasoning."""
    given = body.chat_template_kwargs
    return given if body.thinking is None else {"enable_thinking": body.thinking.type == "adaptive", **given}


def _tool_fields(body: ConversationFields) -> Fields:
    tools = [tool for tool in body.tools if isinstance(tool, CustomTool)]
    fields: Fields = {
        "tools": [function_tool(tool.name, tool.description, tool.input_schema, tool.strict) for tool in tools]
    }
    choice = body.tool_choice
    if choice is not None:
        fields["tool_choice"] = _tool_choice(choice)
        if choice.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
