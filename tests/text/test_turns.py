"""Agents send system messages behind others, and several messages of the user in a row: every template takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.text.families import ANSWER, FAMILIES, ONLY_PARTS, SOURCES, SYSTEM, USER, in_parts, with_roles_of

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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CHATS)
def test_every_order_is_rendered(family: str, name: str, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    chat = CHATS[name]
    text = ours(family, chat)
    at = [text.find(message["content"]) for message in chat if message is not USER and message is not ANSWER]
    assert -1 not in at
    known = []
    for order in (with_roles_of(family, order) for order in orders(chat)):
        try:
            known.append(theirs(family, [in_parts(one) for one in order] if family in ONLY_PARTS else order))
        except TemplateError:
            continue
    assert text in known


def test_a_system_message_of_a_model_without_system_role_stands_in_front_of_what_the_user_says() -> None:
    """Also where the template reads parts, and drops what it does not know without an error."""
    source = (
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, {}, [])
    for role in ("system", "developer"):
        for chat, text in [
            ([SYSTEM | {"role": role}, in_parts(USER, "Now.")], "<user>Be brief.\n\nIs it raining?Now."),
            ([in_parts(SYSTEM | {"role": role}, "Please."), USER], "<user>Be brief.\nPlease.\n\nIs it raining?"),
            ([SYSTEM | {"role": role}, ANSWER, USER], "<assistant>It is.<user>Be brief.\n\nIs it raining?"),
            ([SYSTEM | {"role": role}], "<user>Be brief."),
        ]:
            assert "".join(piece for piece, _ in template.render(chat)) == text


def test_a_line_at_the_start_says_that_there_is_no_system_role(
    smol: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for family in ("gemma2", "gemma3"):
        caplog.clear()
        (tmp_path / "chat_template.jinja").write_text(SOURCES[family])
        with caplog.at_level("INFO"):
            ChatTemplate.from_folder(tmp_path, smol)
        assert ("no system role" in caplog.text) == (family == "gemma2")


def test_a_template_that_wants_the_system_message_first() -> None:
    template = ChatTemplate(QWEN, {}, [])
    for name, chat in CHATS.items():
        text = "".join(piece for piece, _ in template.render(chat, add_generation_prompt=False))
        roles = [turn.partition("\n")[0] for turn in text.split("<|im_start|>")[1:]]
        assert roles[0] == "system", name
        assert "system" not in roles[1:], name
        assert all(message["content"] in text for message in chat), name
