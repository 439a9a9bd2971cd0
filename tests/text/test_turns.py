"""Agents send system messages behind others, and several messages of the user in a row: every template takes them."""

from collections.abc import Callable
from typing import Any

import pytest
from jinja2 import TemplateError

from app.text.chat_template import ChatTemplate
from tests.text.families import ANSWER, FAMILIES, NO_SYSTEM, ONLY_PARTS, SYSTEM, USER, in_parts

LATER = {"role": "system", "content": "Speak of rain only."}
MORE = {"role": "user", "content": "And tomorrow?"}
CHATS = {
    "later": [SYSTEM, USER, LATER, ANSWER, MORE],
    "leading": [SYSTEM, LATER, USER],
    "users": [SYSTEM, USER, MORE, ANSWER, USER],
    "last": [SYSTEM, USER, ANSWER, USER, LATER],
}
QWEN = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def orders(chat: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A chat as it is, and as someone would write it for a template that wants the system message first, or turns."""

    def joined(*messages: dict[str, Any]) -> dict[str, Any]:
        return messages[0] | {"content": "\n\n".join(message["content"] for message in messages)}

    as_user = LATER | {"role": "user"}
    first = {
        "later": [SYSTEM, USER, as_user, ANSWER, MORE],
        "leading": [joined(SYSTEM, LATER), USER],
        "users": CHATS["users"],
        "last": [SYSTEM, USER, ANSWER, USER, as_user],
    }
    turns = {
        "later": [SYSTEM, joined(USER, LATER), ANSWER, MORE],
        "leading": first["leading"],
        "users": [SYSTEM, joined(USER, MORE), ANSWER, USER],
        "last": [SYSTEM, USER, ANSWER, joined(USER, LATER)],
    }
    (name,) = (name for name, one in CHATS.items() if one is chat)
    return [chat, first[name], turns[name]]


@pytest.mark.parametrize("family", sorted({*FAMILIES} - NO_SYSTEM))
@pytest.mark.parametrize("name", CHATS)
def test_every_order_is_rendered(family: str, name: str, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    chat = CHATS[name]
    text = ours(family, chat)
    at = [text.find(message["content"]) for message in chat if message is not USER and message is not ANSWER]
    assert -1 not in at
    known = []
    for order in orders(chat):
        try:
            known.append(theirs(family, [in_parts(one) for one in order] if family in ONLY_PARTS else order))
        except TemplateError:
            continue
    assert text in known


def test_a_template_that_wants_the_system_message_first() -> None:
    template = ChatTemplate(QWEN, {}, [])
    for name, chat in CHATS.items():
        text = "".join(piece for piece, _ in template.render(chat, add_generation_prompt=False))
        roles = [turn.partition("\n")[0] for turn in text.split("<|im_start|>")[1:]]
        assert roles[0] == "system", name
        assert "system" not in roles[1:], name
        assert all(message["content"] in text for message in chat), name
