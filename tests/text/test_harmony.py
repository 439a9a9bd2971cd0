"""Messages in channels, as gpt-oss writes them: as the format's documentation has them, and as models do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.chat_template import ChatTemplate
from app.text.harmony import ANALYSIS, HarmonyParser
from app.text.message_format import MessageFormat
from app.text.tools.formats import HARMONY
from tests.text.families import SOURCES, USER
from tests.text.test_message_parsers import Whole, parse

THINKS = "<|channel|>analysis<|message|>User asks for 2 + 2.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>2 + 2 = 4."
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Köln"}'
SCHEMAS = {"weather": {}, "time": {}}
WEATHER = ("weather", '{"city":"Köln"}')

TEXTS: list[tuple[str, Whole]] = [
    (FINAL, ("2 + 2 = 4.", "", [])),
    (THINKS + FINAL + "<|return|>", ("2 + 2 = 4.", "User asks for 2 + 2.", [])),
    (THINKS + CALL + "<|call|>", ("", "User asks for 2 + 2.", [WEATHER])),
    (  # the recipient may stand in front of the channel
        THINKS + ' to=functions.weather<|channel|>commentary json<|message|>{"city":"Köln"}<|call|>',
        ("", "User asks for 2 + 2.", [WEATHER]),
    ),
    (  # a text for the user in front of calls, and several of them
        THINKS + "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + CALL + "<|call|>"
        "<|start|>assistant<|channel|>analysis to=functions.time code<|message|><|call|>",
        ("I look.", "User asks for 2 + 2.", [WEATHER, ("time", "{}")]),
    ),
    (THINKS + THINKS + FINAL, ("2 + 2 = 4.", "User asks for 2 + 2.\nUser asks for 2 + 2.", [])),
    ("<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes", ("Yes", "Hm.", [])),
    ("<|channel|>analysis<|message|>cut", ("", "cut", [])),
    ("no header <|here|>", ("no header <|here|>", "", [])),
    # headers that are cut at the limit of tokens, and what is none
    ("<|channel|>", ("", "", [])),
    ("<|channel|>final", ("", "", [])),
    (THINKS + CALL.partition("<|message|>")[0], ("", "User asks for 2 + 2.", [])),
    (THINKS + " to=functions.wea", ("", "User asks for 2 + 2.", [])),
    ("<|channel|>final 2 + 2 = 4.", ("<|channel|>final 2 + 2 = 4.", "", [])),
    ("", ("", "", [])),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_channels_are_told_apart(text: str, expected: Whole) -> None:
    assert parse(HarmonyParser(SCHEMAS), [text]) == expected


def test_without_tools_there_are_no_calls() -> None:
    assert parse(HarmonyParser({}), [THINKS + CALL]) == ('{"city":"Köln"}', "User asks for 2 + 2.", [])


@given(st.lists(st.sampled_from([text for text, _ in TEXTS]), max_size=3).map("".join), st.data())
def test_where_a_text_is_cut_changes_nothing(text: str, data: st.DataObject) -> None:
    text = text[: data.draw(st.integers(0, len(text)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(HarmonyParser(SCHEMAS), [text])
    assert parse(HarmonyParser(SCHEMAS), pieces) == whole
    assert parse(HarmonyParser(SCHEMAS), list(text)) == whole


def test_what_is_known_is_not_held_back() -> None:
    parser = HarmonyParser(SCHEMAS)
    assert parser.feed("<|channel|>analysis<|message|>Hm").reasoning == "Hm"
    parser.feed("<|end|><|start|>assistant")
    (begun,) = parser.feed("<|channel|>commentary to=functions.weather<|message|>").tool_calls
    assert begun.name == "weather"
    assert [call.arguments for call in parser.feed('{"ci').tool_calls] == ['{"ci']


def test_a_model_with_channels_is_known_by_its_template() -> None:
    template = ChatTemplate(SOURCES["gpt_oss_like"], {}, [])
    format_ = MessageFormat.choose("auto", "auto", template)
    assert format_ == MessageFormat(HARMONY, ANALYSIS)
    thinking = {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    begun = "<|start|>assistant<|channel|>analysis<|message|>Hm"
    assert format_.ends_in_reasoning(begun, thinking)
    prompt = "".join(text for text, _ in template.render([USER]))
    assert prompt.endswith("<|start|>assistant")
    assert not format_.ends_in_reasoning(prompt, {})
    assert parse(format_.parser(SCHEMAS, True), [", yes.<|end|><|start|>assistant" + FINAL]) == (
        "2 + 2 = 4.",
        ", yes.",
        [],
    )
