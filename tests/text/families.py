"""Templates in the form of common families, and chats in the form of OpenAI's API for them."""

import json
from pathlib import Path
from typing import Any

Message = dict[str, Any]
SOURCES = {file.stem: file.read_text() for file in (Path(__file__).parent / "templates").glob("*.jinja")}
FAMILIES = sorted(SOURCES)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
USER, SYSTEM = {"role": "user", "content": "Is it raining?"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is."}
CITIES = ("Köln", "Trier")


def call(*cities: str) -> Message:
    """A message with calls."""
    arguments = [json.dumps({"city": city}, ensure_ascii=False) for city in cities]
    return {"role": "assistant", "content": None, "tool_calls": [called(text, at) for at, text in enumerate(arguments)]}


def called(arguments: str, index: int = 0) -> Message:
    """A call in OpenAI's form."""
    return {"id": f"call_{index}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def result(index: int) -> Message:
    """The result of a call."""
    return {"role": "tool", "tool_call_id": f"call_{index}", "content": f"rain {index}"}


NO_SYSTEM = {"gemma2"}
ONLY_PARTS = {"parts_only"}
PART_ROLES = {
    "gemma3": {"user", "assistant"},  # of a system message's parts, the template reads the first only
    "glm4_5": {"system", "user", "assistant", "tool"},
    "llama3_2_vision": {"system", "user", "assistant"},
    "magistral": {"system", "user", "assistant"},
    "parts_only": {"system", "user", "assistant"},
}
CHATS = {
    "user": [USER],
    "answered": [USER, ANSWER, USER],
    "system": [SYSTEM, USER],
    "all": [SYSTEM, USER, ANSWER, {"role": "user", "content": " And\n\nnow?  "}],
}


def with_roles_of(family: str, chat: list[Message]) -> list[Message]:
    """The chat as one writes it who knows that the family has no system role: the user says it."""
    if family not in NO_SYSTEM or chat[0]["role"] != "system":
        return chat
    system, user, *rest = chat
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]


def in_parts(message: Message, *more: str) -> Message:
    """The message with its content, and more texts, as parts."""
    return message | {"content": [{"type": "text", "text": text} for text in (message["content"], *more)]}
