"""From requests of Anthropic's Messages to chats."""

import json
from typing import Any

from ...errors import InvalidRequestError
from ..chat.parts import (
    Fields,
    assistant_message,
    function_tool,
    image_part,
    json_schema_format,
    message,
    named_choice,
    token_fields,
    tool_call,
)
from ..chat.schema import ChatRequest
from ..edge.body import validate
from .blocks import (
    CustomTool,
    DefinedTool,
    ImageBlock,
    NamedTool,
    TextBlock,
    ThinkingBlock,
    ToolChangeBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from .schema import ConversationFields, MessagesRequest, ToolChoice

NAMES = {
    "stop_token_ids": "stop_token_ids",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "tools": "tools",
}
"""The names of a chat's fields in this API."""
_OF_THE_CLIENT = "x-anthropic-billing-header:"
"""Beginning of a system block by which Claude Code describes itself. It is another one in each request, so that no
prompt would be found in the prefix cache."""


def to_chat(body: ConversationFields) -> ChatRequest:
    """The chat of a request."""
    told = [text for text in _texts(body.system or []) if not text.startswith(_OF_THE_CLIENT)]
    system = [message("system", told)] if told else []
    messages = system + [one for turn in body.messages for one in _messages(turn)]
    chat: Fields = {"messages": messages, **_reasoning_fields(body), **_tool_fields(body)}
    if body.messages[-1].role == "assistant":
        if "tool_calls" in messages[-1]:
            raise InvalidRequestError("messages: a last turn of the assistant cannot call tools", "messages")
        chat["continue_final_message"] = True
    if asked := body.output_format or (body.output_config and body.output_config.format):
        chat["response_format"] = json_schema_format(asked.schema_, "output")
    if isinstance(body, MessagesRequest):
        chat |= token_fields(body) | {"stop": body.stop_sequences, "cache_retention": body.wished_retention}
    return validate(ChatRequest, chat, set())  # what is not known has been told of


def _messages(turn: Turn) -> list[Fields]:
    """The messages of a turn. Each result of a tool is a message of its own, and so is the text between them."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role == "assistant":
        return [_assistants(turn.content)]
    messages: list[Fields] = []
    said: list[str | Fields] = []
    for block in turn.content:
        if isinstance(block, TextBlock | ImageBlock):
            said += _shown([block])
        elif isinstance(block, ToolResultBlock):
            if said:
                messages.append(message(turn.role, said))
            said = []
            messages.append(_result(block))
    only_changes_tools = turn.content and all(isinstance(block, ToolChangeBlock) for block in turn.content)
    if said or not (messages or only_changes_tools):
        messages.append(message(turn.role, said))
    return messages


def _assistants(blocks: list[Any]) -> Fields:
    reasoning = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [tool_call(block.id, block.name, block.input) for block in blocks if isinstance(block, ToolUseBlock)]
    return assistant_message(_texts(blocks), reasoning, calls)


def _result(block: ToolResultBlock) -> Fields:
    shown = _shown(block.content)
    if block.is_error:
        first = shown[0] if shown and isinstance(shown[0], str) else ""
        shown = [f"Error: {first}", *shown[1 if first else 0 :]]
    return message("tool", shown, tool_call_id=block.tool_use_id)


def _shown(content: Any) -> list[str | Fields]:
    """Texts and images."""
    if isinstance(content, str):
        return [content]
    return [image_part(block.as_url) if isinstance(block, ImageBlock) else block.text for block in content]


def images_of(body: ConversationFields) -> list[tuple[str, str]]:
    """The path of each image's field, in order, and the type of its block."""
    named = []
    for at, turn in enumerate(body.messages):
        for index, block in enumerate(turn.content if isinstance(turn.content, list) else []):
            where = f"messages[{at}].content[{index}]"
            inside = block.content if isinstance(block, ToolResultBlock) else ""
            nested = enumerate(inside if isinstance(inside, list) else [])
            paths = [f"{where}.content[{i}]" for i, one in nested if isinstance(one, ImageBlock)]
            named += [where] if isinstance(block, ImageBlock) else paths
    return [(f"{path}.source", "image") for path in named]


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [block.text for block in content if isinstance(block, TextBlock | ToolReferenceBlock)]


def _reasoning_fields(body: ConversationFields) -> Fields:
    """Whether and how much to reason. In chat templates, `enable_thinking` is the switch for it."""
    switch = {} if body.thinking is None else {"enable_thinking": body.thinking.type != "disabled"}
    fields: Fields = {"chat_template_kwargs": switch | body.chat_template_kwargs}
    if body.output_config is not None:
        fields["reasoning_effort"] = body.output_config.effort
    if body.thinking is not None:
        fields["thinking_token_budget"] = body.thinking.budget_tokens
    return fields


def _tool_fields(body: ConversationFields) -> Fields:
    tools = _tools_at_the_end(body)
    fields: Fields = {
        "tools": [function_tool(tool.name, _about(tool), tool.input_schema, tool.strict) for tool in tools]
    }
    choice = body.tool_choice
    if choice is not None:
        fields["tool_choice"] = _tool_choice(choice)
        if choice.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def _tools_at_the_end(body: ConversationFields) -> list[CustomTool]:
    """The tools that the model may call: those of the request, and what the conversation has changed."""
    known = {tool.name: tool for tool in body.tools if isinstance(tool, CustomTool)}
    removed: set[str] = set()
    blocks = (block for turn in body.messages for block in turn.content if isinstance(block, ToolChangeBlock))
    for block in blocks:
        tool = block.tool.definition if isinstance(block.tool, DefinedTool) else block.tool
        if isinstance(tool, CustomTool):
            known[tool.name] = tool
        if isinstance(tool, CustomTool | NamedTool):
            (removed.add if block.type == "tool_removal" else removed.discard)(tool.name)
    return [tool for name, tool in known.items() if name not in removed]


def _about(tool: CustomTool) -> list[str | None]:
    examples = (f"Example of the input: {json.dumps(one, ensure_ascii=False)}" for one in tool.input_examples)
    return [tool.description, *examples]


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return named_choice(choice.name or "")
    return "required" if choice.type == "any" else choice.type
