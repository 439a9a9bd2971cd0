"""Brings a chat into the form that one chat template reads."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from pydantic_core import from_json

from .tools.prompt import calls_in_words, join_results, tell_tools, text_of
from .turns import system_as_user, system_first, users_together

Message = dict[str, Any]
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Fields in which templates read reasoning."""
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True)
class Shape:
    """What one chat template reads. `app.text.probe` finds it out; the defaults are what plain templates read."""

    text_roles: frozenset[str] = _ROLES
    """Roles whose content is read where it is a text."""
    part_roles: frozenset[str] = frozenset()
    """Roles of whose content, where it is a list of parts, every part is read."""
    system: bool = True
    """Whether there may be a system message. If not, then what it says is put in front of the first user message."""
    later_systems: bool = True
    """Whether there may be several system messages, also behind other messages, as agents send them."""
    users_apart: bool = True
    """Whether messages of the user may stand side by side."""
    developer: bool = False
    """Whether the role `developer` is known."""
    tools: bool = False
    """Whether tools are described to the model."""
    calls: Literal["together", "one by one", "in words"] = "in words"
    """Calls of one message with their results behind them; each call followed by its result; or neither."""
    no_content: Literal["missing", "empty", "none"] = "missing"
    """What stands for the content of a message that has only calls."""
    text_before_calls: bool = False
    """Whether the text of a message with calls has to stand in a message of its own."""
    short_ids: bool = False
    """Whether ids of calls have to be nine letters or digits (Mistral)."""
    named_ids: bool = False
    """Whether ids of calls tell the functions' names, which stand nowhere else (Kimi)."""
    arguments_as_text: bool = False
    """Whether arguments are read as JSON text, rather than as an object."""
    any_arguments: bool = True
    """Whether arguments may also be a text that is no object."""
    user_after_results: bool = True
    """Whether a user's message may follow results, which in words are messages of the user, too."""
    reasoning: Literal["fields", "reasoning", "part"] = "fields"
    """Reasoning as `reasoning_content` and `thinking`, which are transformers' names; as `reasoning`; or as a part of
    the type `thinking` in the content (Magistral)."""

    def apply(self, messages: Sequence[Message], tools: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Messages and tools as the template reads them. Both come as in OpenAI's API, arguments also as objects."""
        chat = [{name: value for name, value in message.items() if value is not None} for message in messages]
        if not self.developer:  # most templates silently drop roles that they do not know
            chat = [{**message, "role": "system"} if message["role"] == "developer" else message for message in chat]
        chat = _with_named_ids(chat) if self.named_ids else chat
        chat = chat if self.later_systems else system_first(chat)
        chat = chat if self.users_apart else users_together(chat)
        described = list(tools) if self.tools else []
        if tools and not described:
            chat = tell_tools(chat, tools, self.system)
        chat = chat if self.system else system_as_user(chat)
        if self.calls == "in words" or len(described) < len(tools):
            chat = calls_in_words(chat, self.user_after_results)
        else:
            chat = _text_apart(chat) if self.text_before_calls else chat
            chat = _one_by_one(chat) if self.calls == "one by one" else chat
            chat = chat if self.user_after_results else join_results(chat)
        return [self._message(message) for message in chat], described

    def _message(self, message: Message) -> Message:
        told = dict(message)
        if calls := message.get("tool_calls"):
            told["tool_calls"] = [self._call(call) for call in calls]
            if not message.get("content") and self.no_content != "missing":
                told["content"] = "" if self.no_content == "empty" else None
        if self.short_ids and "tool_call_id" in message:
            told["tool_call_id"] = _short(message["tool_call_id"])
        if told.get("content") is not None:
            told["content"] = self._content(told["role"], told["content"])
        return self._with_reasoning(told)

    def _content(self, role: str, content: str | list[Message]) -> str | list[Message]:
        if isinstance(content, str):
            only_parts = role in self.part_roles - self.text_roles
            return [{"type": "text", "text": content}] if only_parts else content
        return content if role in self.part_roles else text_of(content)

    def _with_reasoning(self, message: Message) -> Message:
        reasoning = message.pop("reasoning_content", None)
        if not reasoning:
            return message
        if self.reasoning == "part":
            content = message.get("content") or []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return message | {"content": [{"type": "thinking", "thinking": reasoning}, *parts]}
        names = REASONING_NAMES[:2] if self.reasoning == "fields" else REASONING_NAMES[2:]
        return message | dict.fromkeys(names, reasoning)

    def _call(self, call: Message) -> Message:
        function = call["function"]
        told = {**call, "function": {**function, "arguments": self._arguments(function["arguments"])}}
        return told | {"id": _short(call["id"])} if self.short_ids else told

    def _arguments(self, given: str | Message) -> str | Message:
        if self.arguments_as_text:
            return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        if not isinstance(given, str):
            return given
        if (whole := _object_in(given)) is not None:
            return whole
        if self.any_arguments:
            return given
        begun = _object_in(given, is_cut=True)
        return {"arguments": given} if begun is None else begun


def _object_in(text: str, is_cut: bool = False) -> Message | None:
    """The JSON object that a text is, or with `is_cut` begins; None if there is none."""
    try:
        value = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings" if is_cut else False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _short(id_: str) -> str:
    return id_ if _SHORT_ID.fullmatch(id_) else hashlib.sha256(id_.encode()).hexdigest()[:9]


def _with_named_ids(chat: Sequence[Message]) -> list[Message]:
    """The chat with ids of calls as Kimi writes them: functions.NAME:INDEX, counted from the chat's first call on."""
    numbers = count()
    names: dict[str, str] = {}  # of the last call that has an id, since clients may use one again
    told = []
    for message in chat:
        if calls := message.get("tool_calls"):
            ids = [f"functions.{call['function']['name']}:{next(numbers)}" for call in calls]
            names |= {call["id"]: id_ for call, id_ in zip(calls, ids, strict=True)}
            message = message | {"tool_calls": [call | {"id": id_} for call, id_ in zip(calls, ids, strict=True)]}
        elif message.get("tool_call_id") in names:
            message = message | {"tool_call_id": names[message["tool_call_id"]]}
        told.append(message)
    return told


def _text_apart(chat: Sequence[Message]) -> list[Message]:
    """The chat with the text of each message that has calls in a message before it."""
    told: list[Message] = []
    for message in chat:
        if message.get("tool_calls") and message.get("content"):
            told.append({"role": message["role"], "content": message["content"]})
            message = {name: value for name, value in message.items() if name != "content"}
        told.append(message)
    return told


def _one_by_one(chat: Sequence[Message]) -> list[Message]:
    """The chat with each call in a message of its own, and its result behind it."""
    told: list[Message] = []
    for message in chat:
        if message["role"] == "tool":
            told.insert(_place_of_result(told, message.get("tool_call_id")), message)
        elif calls := message.get("tool_calls"):
            told.append(message | {"tool_calls": calls[:1]})
            told += ({"role": message["role"], "tool_calls": [call]} for call in calls[1:])
        else:
            told.append(message)
    return told


def _place_of_result(told: Sequence[Message], id_: str | None) -> int:
    """The place behind the call of this id in the assistant's last turn; the end if it has no such call."""
    for at in range(len(told), 0, -1):
        calls = told[at - 1].get("tool_calls") or []
        if any(call["id"] == id_ for call in calls):
            return at
        if not calls and told[at - 1]["role"] != "tool":
            break
    return len(told)
