"""Texts and parts reach the templates of common families in the form that each of them reads.

The oracle is transformers with the same template. It gets each chat as one would write it who has read the template.
"""

from collections.abc import Callable

import pytest

from tests.text.families import (
    ANSWER,
    CHATS,
    FAMILIES,
    ONLY_PARTS,
    PART_ROLES,
    SYSTEM,
    USER,
    in_parts,
    with_roles_of,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CHATS)
def test_texts(family: str, name: str, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    chat = CHATS[name]
    known = [in_parts(message) for message in chat] if family in ONLY_PARTS else with_roles_of(family, chat)
    assert ours(family, chat) == theirs(family, known)
    assert ours(family, chat, add_generation_prompt=False) == theirs(family, known, add_generation_prompt=False)
    assert all(message["content"].strip() in ours(family, chat) for message in chat)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_parts(family: str, role: str, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    chats = {"system": [SYSTEM, USER], "user": [USER], "assistant": [USER, ANSWER, USER]}
    chat = [in_parts(one, "Again.") if one["role"] == role else one for one in chats[role]]
    text = [one | {"content": one["content"] + "\nAgain."} if one["role"] == role else one for one in chats[role]]
    if family in ONLY_PARTS:
        known = [in_parts(one) if isinstance(one["content"], str) else one for one in chat]
    else:
        known = chat if role in PART_ROLES.get(family, ()) else with_roles_of(family, text)
    rendered = ours(family, chat)
    assert rendered == theirs(family, known)
    assert "Again." in rendered


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("in_parts_", [False, True])
def test_continued_messages(family: str, in_parts_: bool, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    final = in_parts(ANSWER, "Since") if in_parts_ else ANSWER
    chat, options = [USER, final], {"add_generation_prompt": False, "continue_final_message": True}
    if family in ONLY_PARTS:
        known = [in_parts(USER), final if in_parts_ else in_parts(final)]
    elif in_parts_ and "assistant" not in PART_ROLES.get(family, ()):
        known = [USER, ANSWER | {"content": "It is.\nSince"}]
    else:
        known = chat
    assert ours(family, chat, **options) == theirs(family, known, **options)
