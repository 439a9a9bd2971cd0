"""Tools, calls and results in words, in the format of Hermes, for chat templates that do not know them."""

import json
from collections.abc import Sequence
from typing import Any

from .formats import HERMES

Message = dict[str, Any]


def text_of(content: str | list[Message] | None) -> str:
    """The content of a message as one text, with a line break between its parts."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def told_by_user(chat: Sequence[Message], text: str) -> list[Message]:
    """The chat with a text in front of its first user message, or as the user's first if there is none."""
    roles = [message["role"] for message in chat]
    if "user" not in roles:
        at = roles[:1].count("system")
        return [*chat[:at], {"role": "user", "content": text}, *chat[at:]]
    at = roles.index("user")
    content, before = chat[at].get("content"), f"{text}\n\n"
    if isinstance(content, list) and content and content[0]["type"] != "text":  # an image
        said: Any = [{"type": "text", "text": before}, *content]
    elif isinstance(content, list) and content:
        said = [content[0] | {"text": before + content[0]["text"]}, *content[1:]]
    else:
        said = before + text_of(content)
    return [*chat[:at], chat[at] | {"content": said}, *chat[at + 1 :]]


def tell_tools(chat: Sequence[Message], tools: Sequence[Message], in_system: bool) -> list[Message]:
    """The chat with a description of tools in its system message, or else in front of its first user message."""
    text = (
        "You can call functions. These are their signatures:\n<tools>\n"
        + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        + "\n</tools>\nTo call one, answer with its name and arguments:\n"
        '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
    )
    if in_system:
        if chat and chat[0]["role"] in ("system", "developer"):
            return [chat[0] | {"content": f"{text_of(chat[0].get('content'))}\n\n{text}"}, *chat[1:]]
        return [{"role": "system", "content": text}, *chat]
    return told_by_user(chat, text)


def calls_in_words(chat: Sequence[Message], apart: bool) -> list[Message]:
    """The chat with calls as the assistant's text, and with results as the user's.

    If the user's messages cannot stand `apart`, side by side, then results are one message with what the user says
    behind them.
    """
    told: list[Message] = []
    behind_result = False
    for message in chat:
        one = _in_words(message)
        if behind_result and one["role"] == "user" and not apart:
            told[-1] = told[-1] | {"content": f"{told[-1]['content']}\n{text_of(one.get('content'))}"}
        else:
            told.append(one)
        behind_result = message["role"] == "tool"
    return told


def _in_words(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text_of(message.get('content'))}\n</tool_response>"}
    message = dict(message)
    if calls := message.pop("tool_calls", None):
        own = [text_of(message["content"])] if message.get("content") else []
        message["content"] = "\n".join([*own, *map(_call_as_text, calls)])
    return message


def _call_as_text(call: Message) -> str:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{HERMES.before_name}{json.dumps(name)}{HERMES.before_arguments}{told}{HERMES.after_arguments}"


def join_results(chat: Sequence[Message]) -> list[Message]:
    """The chat with what a user says behind a result as a part of that result."""
    told: list[Message] = []
    for message in chat:
        if told and message["role"] == "user" and told[-1]["role"] == "tool":
            content = f"{text_of(told[-1].get('content'))}\n\n{text_of(message.get('content'))}"
            told[-1] = told[-1] | {"content": content}
        else:
            told.append(message)
    return told
