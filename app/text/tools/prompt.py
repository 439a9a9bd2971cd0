"""Describes tools, in the format of Hermes, to models whose chat templates do not know tools."""

import json
from collections.abc import Sequence
from typing import Any

from app.text.tools.formats import HERMES

Message = dict[str, Any]


def describe_tools(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """The messages, with tools described in the system message, and with calls and results as text."""
    told = [_as_text(message) for message in messages]
    if not tools:
        return told
    text = (
        "You can call functions. These are their signatures:\n<tools>\n"
        + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        + "\n</tools>\nTo call one, answer with its name and arguments:\n"
        '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
    )
    if told and told[0]["role"] in ("system", "developer"):
        told[0] = told[0] | {"content": f"{told[0].get('content') or ''}\n\n{text}"}
        return told
    return [{"role": "system", "content": text}, *told]


def _as_text(message: Message) -> Message:
    message = dict(message)
    if isinstance(content := message.get("content"), list):
        message["content"] = "\n".join(part["text"] for part in content)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    if calls := message.pop("tool_calls", None):
        content = message.get("content") or ""
        message["content"] = "\n".join([*([content] if content else []), *map(_call_as_text, calls)])
    return message


def _call_as_text(call: Message) -> str:
    name, arguments = (json.dumps(call["function"][key], ensure_ascii=False) for key in ("name", "arguments"))
    return f"{HERMES.before_name}{name}{HERMES.before_arguments}{arguments}{HERMES.after_arguments}"
