"""Tools, calls, results and reasoning reach the templates of common families in the form that each of them reads.

The oracle is transformers with the same template, as in test_template_families.py.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from app.text.tools.formats import FORMATS
from tests.text.families import (
    ANSWER,
    CITIES,
    FAMILIES,
    NO_SYSTEM,
    ONLY_PARTS,
    SOURCES,
    SYSTEM,
    TOOL,
    USER,
    Message,
    call,
    called,
    in_parts,
    result,
)
from tests.text.test_message_parsers import parse


def as_object(chat: list[Message]) -> list[Message]:
    """The chat with arguments as objects."""
    told = json.loads(json.dumps(chat))
    for one in told:
        for one_call in one.get("tool_calls", []):
            one_call["function"]["arguments"] = json.loads(one_call["function"]["arguments"])
    return told  # type: ignore[no-any-return]


def one_by_one(chat: list[Message]) -> list[Message]:
    """The chat with each call in a message of its own, and its result behind it."""
    told: list[Message] = []
    for one in as_object(chat):
        if "tool_calls" in one:
            results = {two["tool_call_id"]: two for two in chat if two["role"] == "tool"}
            for one_call in one["tool_calls"]:
                told += [one | {"tool_calls": [one_call]}, results[one_call["id"]]]
        elif one["role"] != "tool":
            told.append(one)
    return told


def short_ids(chat: list[Message]) -> list[Message]:
    """As objects, with ids of nine letters and digits."""
    return json.loads(json.dumps(as_object(chat)).replace('"call_', '"callcall'))  # type: ignore[no-any-return]


def with_short_ids(rendered: str) -> str:
    """A rendered chat with these ids instead of those that Paceline made up."""
    for index, id_ in enumerate(re.findall(r'"id": "(\w{9})"', rendered)):
        rendered = rendered.replace(id_, f"callcall{index}")
    return rendered


NATIVE: dict[str, Callable[[list[Message]], list[Message]]] = {
    **dict.fromkeys(["command_r", "glm4_5", "granite3", "magistral", "qwen2_5", "qwen3", "qwen3_coder"], as_object),
    **dict.fromkeys(["gpt_oss_like", "llama3_1"], one_by_one),
    "mistral_v3": short_ids,
    "deepseek_v3": lambda chat: chat,
}
"""The form in which a template reads calls, where it knows them."""
DESCRIBE_TOOLS = set(NATIVE) - {"deepseek_v3"}


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("cities", [CITIES[:1], CITIES])
@pytest.mark.parametrize("later", [[], [ANSWER, USER]])
def test_calls(
    family: str, cities: tuple[str, ...], later: list[Message], ours: Callable[..., str], theirs: Callable[..., str]
) -> None:
    chat = [USER, call(*cities), *(result(index) for index in range(len(cities))), *later]
    tools = [TOOL] if family in DESCRIBE_TOOLS else []
    rendered = ours(family, chat, tools=tools)
    assert with_short_ids(rendered) == theirs(family, NATIVE[family](chat), tools=tools or None)
    assert all(text in rendered for index, city in enumerate(cities) for text in (city, f"rain {index}"))


def test_results_in_another_order_are_told_behind_their_calls(ours: Callable[..., str]) -> None:
    chat = [USER, call(*CITIES), result(0), result(1)]
    assert ours("llama3_1", [*chat[:2], *chat[:1:-1]]) == ours("llama3_1", chat)


def test_what_a_user_says_behind_results_where_roles_must_alternate(
    ours: Callable[..., str], theirs: Callable[..., str]
) -> None:
    """As coding agents do it. Mistral's template refuses it, so it is told with the last result."""
    chat = [USER, call(*CITIES), result(0), result(1)]
    later = {"role": "user", "content": "And now?"}
    known = short_ids([*chat[:-1], result(1) | {"content": "rain 1\n\nAnd now?"}])
    assert with_short_ids(ours("mistral_v3", [*chat, later])) == theirs("mistral_v3", known)
    assert ours("qwen2_5", [*chat, later]) == theirs("qwen2_5", as_object([*chat, later]))


ALTERNATE = {"gemma2", "gemma3", "llama2"}
"""Templates in which user and assistant have to alternate."""
IN_WORDS = sorted(set(FAMILIES) - DESCRIBE_TOOLS)


@pytest.mark.parametrize("family", IN_WORDS)
@pytest.mark.parametrize("first", [[], [SYSTEM]])
def test_tools_and_calls_in_words(
    family: str, first: list[Message], ours: Callable[..., str], theirs: Callable[..., str]
) -> None:
    later = {"role": "user", "content": "And now?"}
    chat = [*first, USER, call(*CITIES), result(0), result(1), later]
    rendered = ours(family, chat, tools=[TOOL])
    told = json.dumps(TOOL, ensure_ascii=False)
    description = rendered[rendered.index("You can call") : rendered.index("</tool_call>") + len("</tool_call>")]
    assert told in description
    calls = [f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>' for city in CITIES]
    results = [f"<tool_response>\nrain {index}\n</tool_response>" for index in range(2)]
    asked = USER
    if family in NO_SYSTEM:
        said = [*(one["content"] for one in first), description, USER["content"]]
        first, asked = [], {"role": "user", "content": "\n\n".join(said)}
    else:
        first = [{"role": "system", "content": "\n\n".join([*(one["content"] for one in first), description])}]
    called_ = {"role": "assistant", "content": "\n".join(calls)}
    if family in ALTERNATE:
        behind = [{"role": "user", "content": f"{results[0]}\n{results[1]}\nAnd now?"}]
    else:
        behind = [*({"role": "user", "content": text} for text in results), later]
    known = [*first, asked, called_, *behind]
    assert rendered == theirs(family, [in_parts(one) for one in known] if family in ONLY_PARTS else known)


def test_tools_and_calls_in_words_can_be_read_back(ours: Callable[..., str]) -> None:
    rendered = ours("smollm2", [USER, call(*CITIES)], tools=[TOOL])
    said = rendered.partition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
    _, _, calls = parse(FORMATS["hermes"].parser(), [said])
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("weather", {"city": city}) for city in CITIES
    ]


def test_a_text_beside_calls_where_the_template_would_lose_the_calls(
    ours: Callable[..., str], theirs: Callable[..., str]
) -> None:
    said = call(*CITIES) | {"content": "I look."}
    results = [result(0), result(1)]
    apart = [USER, {"role": "assistant", "content": "I look."}, call(*CITIES), *results]
    assert ours("deepseek_v3", [USER, said, *results]) == theirs("deepseek_v3", apart)
    assert ours("qwen3", [USER, said, *results]) == theirs("qwen3", as_object([USER, said, *results]))


def test_a_template_for_tools_alone_is_found_out_with_a_tool() -> None:
    source = SOURCES["qwen2_5"].replace("{%- if tools %}", "{%- if tools[0].function.name %}", 1)
    template = ChatTemplate("default", {}, [], source)
    assert template.describes_tools
    assert len(template.calls_as_shown()) == 2
    chat = [SYSTEM, USER, call(*CITIES), result(0)]
    text = "".join(text for text, _ in template.render(chat, tools=[TOOL]))
    assert text == "".join(text for text, _ in ChatTemplate(SOURCES["qwen2_5"], {}, []).render(chat, tools=[TOOL]))


def test_a_developer_that_is_known_at_the_beginning_only_is_the_system() -> None:
    """As Cohere's templates know them."""
    known = "{% if m.role != 'developer' or loop.first %}[{{ m.role }}]{{ m.content }}{% endif %}"
    template = ChatTemplate(f"{{% for m in messages %}}{known}{{% endfor %}}", {}, [])
    chat = [USER, {"role": "developer", "content": "Be brief."}]
    assert "Be brief." in "".join(text for text, _ in template.render(chat))


def test_developers_are_the_system_where_the_role_is_not_known(ours: Callable[..., str]) -> None:
    chat = [{"role": "developer", "content": "Be brief."}, USER]
    assert "<|start|>developer<|message|>Be brief." in ours("gpt_oss_like", chat)
    assert ours("qwen2_5", chat, tools=[TOOL]) == ours("qwen2_5", [SYSTEM, USER], tools=[TOOL])
    assert "<|im_start|>system\nBe brief.\n\nYou can call" in ours("smollm2", chat, tools=[TOOL])


def test_tools_in_words_where_nobody_has_said_anything(ours: Callable[..., str]) -> None:
    assert ours("gemma2", [SYSTEM], tools=[TOOL]).startswith(
        "<|im_start|><start_of_turn>user\nBe brief.\n\nYou can call"
    )
    assert "You can call" in ours("smollm2", [ANSWER], tools=[TOOL])


REASONING: dict[str, Callable[[Message], Message]] = {
    **dict.fromkeys(["qwen3", "glm4_5"], lambda message: message),
    "gpt_oss_like": lambda message: {"thinking": message.pop("reasoning_content"), **message},
    "reasoning_field": lambda message: {"reasoning": message.pop("reasoning_content"), **message},
    "magistral": lambda message: (
        message
        | {
            "content": [
                {"type": "thinking", "thinking": message.pop("reasoning_content")},
                *parts_of(message["content"]),
            ]
        }
    ),
}
"""Where templates read reasoning."""


def parts_of(content: str) -> list[Message]:
    return [{"type": "text", "text": content}] if content else []


@pytest.mark.parametrize(
    ("family", "calls"),
    [
        *((family, calls) for family in ("qwen3", "glm4_5", "magistral") for calls in (False, True)),
        ("gpt_oss_like", True),
        ("reasoning_field", False),
    ],
)
def test_reasoning(family: str, calls: bool, ours: Callable[..., str], theirs: Callable[..., str]) -> None:
    said = call("Trier") if calls else ANSWER
    chat = [USER, said | {"reasoning_content": "I look outside."}, *([result(0)] if calls else [])]
    known = as_object(chat)
    known[1] = REASONING[family](known[1])
    rendered = ours(family, chat)
    assert rendered == theirs(family, known)
    assert rendered.count("I look outside.") == 1


CUT = ['{"city": "Tri', '{"city"', "Trier", "[1]", ""]
"""Arguments of calls that were cut by max_tokens, or that are no object for other reasons."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arguments", CUT)
def test_a_call_that_was_cut_is_taken_back(family: str, arguments: str, ours: Callable[..., str]) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [called(arguments)]}
    rendered = ours(family, [USER, message, result(0)], tools=[TOOL] if family in DESCRIBE_TOOLS else [])
    assert "weather" in rendered
    assert "rain 0" in rendered
    assert "Tri" in rendered or "Tri" not in arguments


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["calls", "parts"])
def test_control_tokens_of_users_stay_text_in_every_shape(
    family: str, name: str, smol: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """Wherever a template puts texts side by side, they do not become a control token together."""

    def count(*texts: str) -> int:
        one, two = texts
        if name == "parts":
            chat = [in_parts({"role": "user", "content": one}, two)]
        else:
            chat = [
                {"role": "user", "content": one},
                call(one, two),
                result(0) | {"content": one},
                result(1) | {"content": two},
            ]
        tools = [TOOL] if name == "calls" and family in DESCRIBE_TOOLS else []
        ids = smol.encode_segments(templates[family].render(chat, tools=tools))
        return sum(id_ in smol.special_ids for id_ in ids)

    assert count("<|im_", "end|>") == count("<|im_end|>", "<|im_start|>") == count("a", "b")


TEXTS = st.sampled_from(["", " ", "Hi", "<|im_end|>", "a\n", "{", "<think>", "\U000f0000"])
CONTENTS = st.one_of(st.none(), TEXTS, st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), max_size=2))
CALLS = st.lists(
    st.builds(called, st.sampled_from([*CUT, '{"city": "Ulm"}', "{}", "null"]), st.integers(0, 2)), max_size=2
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": CONTENTS},
    optional={"tool_calls": CALLS, "reasoning_content": TEXTS, "tool_call_id": st.sampled_from(["call_0", "x"])},
)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_chat_is_worse_than_an_error_of_the_request(family: str, templates: dict[str, ChatTemplate]) -> None:
    @settings(deadline=None, max_examples=30)
    @given(st.lists(MESSAGES, min_size=1, max_size=5), st.booleans(), st.booleans())
    def check(chat: list[Message], has_tools: bool, continues: bool) -> None:
        given_ = json.dumps(chat)
        with suppress(InvalidRequestError):
            templates[family].render(chat, tools=[TOOL] if has_tools else [], continue_final_message=continues)
        assert json.dumps(chat) == given_  # the chat itself stays as it is

    check()
