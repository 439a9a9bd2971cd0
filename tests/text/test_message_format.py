"""Whether a prompt ends inside of the model's reasoning, and which tags reasoning has."""

from collections.abc import Callable
from typing import Any

import pytest

from app.text.chat_template import ChatTemplate
from app.text.message_format import MessageFormat
from app.text.reasoning import TAGS, THINK, ReasoningTags
from app.text.tools.formats import FORMATS
from tests.text.families import SOURCES, USER, Message
from tests.text.test_message_parsers import parse

FORMAT = MessageFormat(FORMATS["hermes"], THINK)


@pytest.mark.parametrize(
    ("family", "setting", "tags"),
    [
        ("qwen3", "auto", THINK),
        ("deepseek_v3", "auto", THINK),
        ("magistral", "auto", TAGS["mistral"]),
        ("llama3_1", "auto", None),
        ("llama3_1", "gemma4", TAGS["gemma4"]),
        ("qwen3", "none", None),
        ("llama3_1", "mistral", TAGS["mistral"]),
    ],
)
def test_the_tags_are_those_of_the_template(family: str, setting: str, tags: ReasoningTags | None) -> None:
    template = ChatTemplate(SOURCES[family], {"bos_token": "<s>", "eos_token": "</s>"}, [])
    assert MessageFormat.choose("auto", setting, template).reasoning == tags


@pytest.mark.parametrize(
    ("family", "is_open"),
    [("deepseek_v3", True), ("reasoning_field", True), ("qwen3", False), ("llama3_1", False)],
)
def test_a_generation_prompt_may_open_the_reasoning(family: str, is_open: bool, ours: Callable[..., str]) -> None:
    assert FORMAT.ends_in_reasoning(ours(family, [USER]), {}) is is_open
    assert FORMAT.ends_in_reasoning(ours(family, [{"role": "user", "content": "What is <think>?"}]), {}) is is_open


@pytest.mark.parametrize(
    ("content", "is_open"),
    [
        ("<think>\nLet me", True),
        ("<think>\nLet me see.\n</think>\n\nYes", False),
        ("<think>", True),
        ("Yes", False),
    ],
)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "smollm2"])
def test_a_message_may_be_continued_inside_of_its_reasoning(
    family: str, content: str, is_open: bool, ours: Callable[..., str]
) -> None:
    final = {"role": "assistant", "content": content}
    prompt = ours(family, [USER, final], continue_final_message=True)
    assert FORMAT.ends_in_reasoning(prompt, final) is is_open
    assert not MessageFormat(FORMATS["hermes"]).ends_in_reasoning(prompt, final)


@pytest.mark.parametrize("family", ["qwen3", "glm4_5", "magistral"])
def test_reasoning_that_was_cut_is_continued(family: str, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    """What a message has that was cut in its reasoning: no content."""
    final: Message = {"role": "assistant", "content": "", "reasoning_content": "Let me"}
    prompt = ours(family, [USER, final], continue_final_message=True)
    assert prompt.endswith("Let me")
    tags = TAGS["mistral"] if family == "magistral" else THINK
    assert MessageFormat(FORMATS["hermes"], tags).ends_in_reasoning(prompt, final)
    if family != "magistral":  # reads a part of the content, which transformers does not continue
        options: dict[str, Any] = {"continue_final_message": "reasoning_content", "add_generation_prompt": False}
        assert prompt == theirs(family, [USER, final], **options)


@pytest.mark.parametrize("tags", TAGS.values())
@pytest.mark.parametrize("end", ["", "\n"])
def test_reasoning_that_a_prompt_has_opened_needs_no_tag_of_its_own(tags: ReasoningTags, end: str) -> None:
    """As of templates whose generation prompt is <think>, so that the model writes </think> alone."""
    format_ = MessageFormat(FORMATS["hermes"], tags)
    prompt = f"Hi<assistant>{tags.open.strip()}{end}"
    assert format_.ends_in_reasoning(prompt, {})
    assert not format_.ends_in_reasoning(f"{prompt}{tags.close}", {})
    text = f"Hm.{tags.close}\n\nYes.<tool_call>" + '{"name": "f", "arguments": {}}</tool_call>'
    for pieces in ([text], list(text)):
        assert parse(format_.parser({"f": {}}, True), pieces) == ("Yes.", "Hm.", [("f", "{}")])
        assert parse(format_.parser({"f": {}}, False), [tags.open, *pieces])[1] == "Hm."
