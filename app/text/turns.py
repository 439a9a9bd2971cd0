"""The order of messages, for chat templates that do not take every order."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from .tools.prompt import text_of, told_by_user

Message = dict[str, Any]


def system_first(chat: Sequence[Message]) -> list[Message]:
    """The chat with one system message at most, at its beginning. What later ones say becomes the user's."""
    leading = list(takewhile(lambda message: message["role"] == "system", chat))
    rest = [message | {"role": "user"} if message["role"] == "system" else message for message in chat[len(leading) :]]
    return [_joined(leading), *rest] if leading else rest


def system_as_user(chat: Sequence[Message]) -> list[Message]:
    """The chat with what the system message at its beginning says in front of the first user message."""
    if not chat or chat[0]["role"] != "system":
        return list(chat)
    return told_by_user(chat[1:], text_of(chat[0].get("content")))


def users_together(chat: Sequence[Message]) -> list[Message]:
    """The chat with messages of the user that stand side by side as one."""
    told: list[Message] = []
    for message in chat:
        if told and message["role"] == told[-1]["role"] == "user":
            told[-1] = _joined([told[-1], message])
        else:
            told.append(message)
    return told


def _joined(messages: Sequence[Message]) -> Message:
    if len(messages) == 1:
        return messages[0]
    return messages[0] | {"content": "\n\n".join(text_of(message.get("content")) for message in messages)}
