"""Tool calls and reasoning in texts, which may be cut anywhere."""

import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.message_format import MessageFormat
from app.text.message_parser import MessageDelta, MessageParser, PlainText
from app.text.reasoning import TAGS, THINK, ReasoningParser
from app.text.tools import formats

SAME = {"deepseek_v4"}
"""What differs from another format by a word."""
FORMATS = {name: of for name, of in formats.FORMATS.items() if not of.has_channels and name not in SAME}
"""Those of calls alone: for the other one see `.test_harmony`."""
Whole = tuple[str, str, list[tuple[str, str]]]
"""Content, reasoning, and calls with their arguments."""


def parse(parser: MessageParser, pieces: Sequence[str]) -> Whole:
    return whole_of([*map(parser.feed, pieces), parser.finish()])


def whole_of(deltas: Sequence[MessageDelta]) -> Whole:
    """What these deltas say together."""
    calls: list[list[str]] = []
    for call in (call for delta in deltas for call in delta.tool_calls):
        if call.name is not None:
            assert call.index == len(calls)
            calls.append([call.name, call.arguments])
        else:
            assert call.index == len(calls) - 1
            calls[-1][1] += call.arguments
    content, reasoning = ("".join(getattr(delta, kind) for delta in deltas) for kind in ("content", "reasoning"))
    json.dumps([content, reasoning, calls], ensure_ascii=False).encode()  # else it could not be sent
    return content, reasoning, [(name, arguments) for name, arguments in calls]


ARGUMENTS = {"city": 'Köln "am" {Rhein}]}', "days": [1, 2], "deep": {"a": None, "b": True}}
ONE = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
IN_STRING = json.dumps({"name": "weather", "arguments": json.dumps(ARGUMENTS)})
OTHER = '{"arguments": {}, "name": "time"}'
TAGGED = """<tool_call>
<function=weather>
<parameter=city>
Köln "am" {Rhein}]}
</parameter>
<parameter=days>
[1, 2]
</parameter>
<parameter=deep>
{"a": null, "b": true}
</parameter>
</function>
</tool_call>"""
SCHEMAS = {
    "weather": {
        "properties": {"city": {"type": "string"}, "days": {"type": "array"}, "deep": {"$ref": "#/$defs/d"}},
        "$defs": {"d": {"type": ["object", "null"]}},
    }
}
CALLS = [("weather", ARGUMENTS), ("time", {})]
ONE_L, OTHER_L = (text.replace("arguments", "parameters") for text in (ONE, OTHER))
IN_JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
IN_GLM = """<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Köln "am" {Rhein}]}</arg_value>
<arg_key>days</arg_key>
<arg_value>[1, 2]</arg_value>
<arg_key>deep</arg_key>
<arg_value>{"a": null, "b": true}</arg_value>
</tool_call>"""
INVOKED = """<minimax:tool_call>
<invoke name="weather">
<parameter name="city">Köln "am" {Rhein}]}</parameter>
<parameter name="days">[1, 2]</parameter>
<parameter name="deep">{"a": null, "b": true}</parameter>
</invoke>
<invoke name="time">
</invoke>
</minimax:tool_call>"""
IN_DSML = """<｜DSML｜function_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Köln "am" {Rhein}]}</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>
<｜DSML｜parameter name="deep" string="false">{"a": null, "b": true}</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="time">
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
IN_SEED = TAGGED.replace("tool_call>", "seed:tool_call>")
DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{}\n```<｜tool▁call▁end｜>\n"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{{}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{{}}<|tool_call_end|><|tool_calls_section_end|>"
)
COHERE = (
    '<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {}}},\n'
    '    {{"tool_call_id": "1", "tool_name": "time", "parameters": {{}}}}\n]<|END_ACTION|>'
)
FUNCTION_GEMMA = (
    '<start_function_call>call:weather{city:<escape>Köln "am" {Rhein}]}<escape>,days:[1,2],deep:{a:null,b:true}}'
    "<end_function_call><start_function_call>call:time{}<end_function_call>"
)
GEMMA_4 = (
    FUNCTION_GEMMA.replace("<escape>", '<|"|>')
    .replace("{a:", '{<|"|>a<|"|>: ')
    .replace("<start_function_call>", "<|tool_call>")
    .replace("<end_function_call>", "<tool_call|>")
)
TEXTS = {
    "hermes": f"Let me see.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{OTHER}</tool_call>",
    "llama3_json": f"  {ONE.replace('arguments', 'parameters')}; {OTHER}",
    "mistral": f"Let me see. [TOOL_CALLS][{ONE}, {OTHER}]",
    "pythonic": """[weather(city='Köln "am" {Rhein}]}', days=[1, 2], deep={"a": None, "b": true}), time()]""",
    "qwen3_coder": f"Let me see.\n{TAGGED}\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
    "glm45": f"Let me see.\n{IN_GLM}\n<tool_call>time\n</tool_call>",
    "minimax_m2": f"Let me see.\n{INVOKED}",
    "seed_oss": f"Let me see.\n{IN_SEED}\n<seed:tool_call>\n<function=time>\n</function>\n</seed:tool_call>",
    "deepseek_v3": f"Let me see.\n{DEEPSEEK.format(IN_JSON)}",
    "deepseek_v31": f"Let me see.\n{DEEPSEEK_31.format(IN_JSON)}",
    "deepseek_v32": f"Let me see.\n\n{IN_DSML}",
    "kimi_k2": f"Let me see.\n{KIMI.format(IN_JSON)}",
    "granite": f"Let me see.\n<|tool_call|>[{ONE}, {OTHER}]",
    "command": f"Let me see.\n{COHERE.format(IN_JSON)}",
    "minimax": f"Let me see.\n<tool_calls>\n{ONE}\n{OTHER}\n</tool_calls>",
    "functiongemma": f"Let me see.\n{FUNCTION_GEMMA}",
    "gemma4": f"Let me see.\n{GEMMA_4}",
}
OTHER_FORMS = {
    "hermes": f"Let me see. <tool_call>{ONE[:-1]}, \"id\": {{}}}}</tool_call><tool_call>" + '{"name": "time"}</tool',
    "llama3_json": f"<|python_tag|>{IN_STRING.replace('arguments', 'parameters')};{OTHER}",
    "mistral": f"Let me see.[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{json.dumps(ARGUMENTS)} [TOOL_CALLS]time{{}}",
    "pythonic": "<|python_tag|>" + TEXTS["pythonic"],
    "qwen3_coder": f"Let me see.<function={TAGGED.partition('<function=')[2]}<tool_call>{OTHER}</tool_call>",
    "glm45": re.sub(r"\n *<", "<", f"Let me see.{IN_GLM}<tool_call>{OTHER}</tool_call>"),
    "minimax_m2": f"Let me see.\n{INVOKED.partition('<minimax:tool_call>')[2]}",
    "seed_oss": f"Let me see.{IN_SEED}<seed:tool_call>{OTHER}</seed:tool_call>",
    "deepseek_v3": f"Let me see.\n{DEEPSEEK.format(IN_JSON).removeprefix('<｜tool▁calls▁begin｜>')}",
    "deepseek_v31": f"Let me see. {DEEPSEEK_31.format(IN_JSON).replace('<｜tool▁calls▁end｜>', '')}",
    "deepseek_v32": f"Let me see.{IN_DSML.partition('<｜DSML｜function_calls>')[2]}",
    "kimi_k2": f"Let me see. {KIMI.format(' ' + IN_JSON).replace('functions.', '').replace(':1', '')}",
    "granite": f"Let me see.functools[{ONE}, {OTHER}]",
    "command": f"Let me see.<|START_ACTION|>{ONE_L}, {OTHER}<|END_ACTION|>",
    "minimax": f"Let me see.<tool_calls>[{ONE}, {OTHER}]",
    "functiongemma": f"Let me see.{FUNCTION_GEMMA.replace(',', ', ').replace(':[', ': [')}",
    "gemma4": f"Let me see.{GEMMA_4.replace('call:', ' call:')}",
}  # fmt: skip
WITH_IDS = {"mistral": f'[TOOL_CALLS] [{ONE[:-1]}, "id": "a12345678"}}, {OTHER}]'}
"""As its template shows earlier calls to the model."""
ONE_P = TEXTS["pythonic"].removesuffix(", time()]") + "]"
ONE_BEHIND_THE_OTHER = [
    *(("llama3_json", f"{ONE_L}{between}{OTHER_L}{end}") for between in ("\n", "", ", ", ";\n") for end in ("", "\n")),
    ("llama3_json", f"[{ONE_L}, {OTHER_L}]"),
    ("llama3_json", f"<|python_tag|>{ONE_L}<|python_tag|>{OTHER_L}"),
    ("hermes", f"<tool_call>\n{ONE}\n{OTHER}\n</tool_call>"),
    ("hermes", f"<tool_call>[{ONE}, {OTHER}]</tool_call>"),
    ("hermes", f"<tool_call>{ONE}<tool_call>{OTHER}"),
    ("mistral", f"[TOOL_CALLS] [{ONE}][TOOL_CALLS] [{OTHER}]"),
    ("mistral", f"[TOOL_CALLS]{ONE}\n{OTHER}"),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{json.dumps(ARGUMENTS)}\n[TOOL_CALLS]time[ARGS]{{}}"),
    *(("pythonic", f"{ONE_P}{between}[time()]") for between in ("", "\n", "; ")),
    ("qwen3_coder", f"{TAGGED}\n\n<tool_call>\n<function=time>\n</function>\n</tool_call>\n"),
    ("qwen3_coder", TAGGED.removesuffix("</tool_call>") + "<function=time></function></tool_call>"),
    ("qwen3_coder", f"<tool_call>{ONE}</tool_call><tool_call>{OTHER}</tool_call>"),
    ("command", f'<|START_ACTION|>[{ONE_L}, {{"tool_call_id": "1", "tool_name": "time"}}]<|END_ACTION|>'),
]
NO_CALLS = [
    "Just text, with {braces} and <tool_ca and [brackets] .\n ",
    "<tool_call>\nnot JSON</tool_call>",
    '<tool_call>{"name": 7, "arguments": {}}</tool_call> and on',
    '{"answer": 42}',
    '{"name": "cut", "argum',
    '[TOOL_CALLS] [{"nam',
    "[TOOL_CALLS]no braces",
    "[1, 2, 3]",
    "[f(1)] [g(a=b)] [h(",
    "[f(x=[1,2)]",
    "<|python_tag|>print(1)",
    "<tool_call><tool_call>",
    "Hi \n<tool_call>\n{'name': 'f'}</tool_call>",
    "Hi \n<tool_call>\n" + '{"a": ' + "[" * 2000 + "]" * 2000 + "}",
    '{"name": "Bob", "age": 7}',
    '<tool_call>{"name": "Bob", "age": 7}</tool_call>',
    '[f(**{"a": 1})]',
    "[f(), (lambda: 0)()]",
    "[f(x=1e999)]",
    "[f(x={[]})]",
    "[f(x={{}: 1})]",
    r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>',
    r'{"name": "\udc00", "parameters": {}}',
    r'{"parameters": {}, "name": "\ud800"}',
    "<tool_call>\n<function",
    "<tool_call>\n<function=two words>",
    "I write <function= and </function>.",
    "<",
    "",
]


PARSERS: dict[str, Callable[[], MessageParser]] = {
    **{name: partial(format_.parser, SCHEMAS) for name, format_ in FORMATS.items()},
    "thinks": lambda: ReasoningParser(FORMATS["hermes"].parser(), is_open=False),
    "thinks already": lambda: ReasoningParser(PlainText(), is_open=True),
    "thinks in brackets": lambda: ReasoningParser(FORMATS["mistral"].parser(), False, TAGS["mistral"]),
}


@pytest.mark.parametrize(("name", "text"), [item for texts in (TEXTS, OTHER_FORMS, WITH_IDS) for item in texts.items()])
def test_calls_are_found(name: str, text: str) -> None:
    content, _, calls = parse(PARSERS[name](), [text])
    assert [(function, json.loads(arguments)) for function, arguments in calls] == CALLS
    assert content == ("Let me see." if "Let me see." in text else "")


@pytest.mark.parametrize(("name", "text"), ONE_BEHIND_THE_OTHER)
def test_calls_one_behind_the_other(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        content, _, calls = parse(PARSERS[name](), pieces)
        assert [(function, json.loads(arguments)) for function, arguments in calls] == CALLS
        assert content == ""


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("hermes", r'<tool_call>{"arguments": {"a": "\ud800é"}, "name": "f"}</tool_call>', r'{"a": "\ud800é"}'),
        ("hermes", r'<tool_call>{"arguments": "{\"a\": \"\udfff\"}", "name": "f"}</tool_call>', r'{"a": "\udfff"}'),
        ("hermes", r'<tool_call>{"arguments": {"a": "\ud83d\ude00"}, "name": "f"}</tool_call>', '{"a": "😀"}'),
        ("pythonic", r"[f(a='\ud800é')]", r'{"a": "\ud800é"}'),
    ],
)
def test_half_of_a_surrogate_pair_stays_an_escape(name: str, text: str, arguments: str) -> None:
    """As a character it could not be sent: it has no UTF-8."""
    assert parse(FORMATS[name].parser(), [text]) == ("", "", [("f", arguments)])


def test_deepseeks_markup_says_what_a_schema_does_not() -> None:
    """Line breaks belong to a string there, and one that looks like a number is a string if the tag says so."""
    said = {"text": ("true", "\n10\n"), "ten": ("true", "10"), "count": ("false", "10"), "odd": ("false", "ten")}
    arguments = "".join(
        f'<｜DSML｜parameter name="{key}" string="{kind}">{value}</｜DSML｜parameter>\n'
        for key, (kind, value) in said.items()
    )
    text = (
        f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n{arguments}</｜DSML｜invoke>\n</｜DSML｜function_calls>'
    )
    for pieces in ([text], list(text)):
        ((_, found),) = parse(FORMATS["deepseek_v32"].parser(), pieces)[2]
        assert json.loads(found) == {"text": "\n10\n", "ten": "10", "count": 10, "odd": "ten"}


@pytest.mark.parametrize("text", NO_CALLS)
@pytest.mark.parametrize("name", FORMATS)
def test_text_that_is_not_a_call_is_content(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert parse(FORMATS[name].parser(), pieces) == (text, "", [])


PIECES = [
    *TEXTS.values(),
    *OTHER_FORMS.values(),
    *WITH_IDS.values(),
    *(text for text in NO_CALLS if len(text) < 1000),  # the longer takes as long as all others
    *(text for _, text in ONE_BEHIND_THE_OTHER),
    "<think>\nWell.\n</think>\n\n",
    "</think>",
    "[THINK]Well.[/THINK]",
    "  ",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=3).map("".join), st.data())
@pytest.mark.parametrize("name", PARSERS)
def test_where_a_text_is_cut_changes_nothing(name: str, text: str, data: st.DataObject) -> None:
    text = text[: data.draw(st.integers(0, len(text)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(PARSERS[name](), [text])
    assert parse(PARSERS[name](), pieces) == whole
    assert parse(PARSERS[name](), list(text)) == whole
    if not whole[2] and "think" not in name:
        assert whole[0] == text


def test_text_that_cannot_become_a_call_is_not_held_back() -> None:
    assert FORMATS["hermes"].parser().feed('<tool_call>{"name": oops').content == '<tool_call>{"name": oops'
    assert FORMATS["pythonic"].parser().feed('[f("a" < ').content == '[f("a" <'


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", ['[f(x="', "<|python_tag|>[f(", '<tool_call>{"name": "', "<tool_call>{", "{"])
def test_parsing_takes_time_in_proportion_to_the_text(name: str, piece: str, request: pytest.FixtureRequest) -> None:
    """Each character is read only a few times: otherwise a long text would take minutes and hold up other requests."""
    request.addfinalizer(gc.enable)
    gc.disable()  # what other tests have left takes a second to be looked through
    for text in (piece + "word " * 2_000, piece * 1_000):
        started = time.process_time()
        parse(FORMATS[name].parser(), [text[at : at + 4] for at in range(0, len(text), 4)])
        assert time.process_time() - started < 2  # a tenth of a second, where nobody else has the processor's caches


FRAGMENTS = [
    *'<tool_call>{}"name:,argumets[TOOL_CALLS]\\/thinkf(x=1)|py ;\n',
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>", "[f(x="),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", '<invoke name="f">', "<minimax:tool_call>"),
    *("<|tool_call>", "call:f{", '<|"|>', "<tool_call|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    *("<｜tool▁call▁begin｜>", "f<｜tool▁sep｜>", "```json\n", "<|tool_call|>", "<|START_ACTION|>"),
    *("<function=f>", "</function>", "<parameter=x>", "</parameter>", '{"name": "f", "arguments": ', '"name"'),
    *(r"\ud800", "{[]}", "{{}: 1}", "1e999", "0x" + "f" * 4000, "-" * 50, "f'{x}'", "\x1c", "\x00", "\u2028"),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
@pytest.mark.parametrize("name", PARSERS)
def test_nothing_is_lost_or_made_up(name: str, fragments: list[str]) -> None:
    text = "".join(fragments)
    pieces = [piece for one in fragments for piece in (one if len(one) < 100 else [one])]
    content, reasoning, calls = parse(PARSERS[name](), pieces)
    assert parse(PARSERS[name](), [text]) == (content, reasoning, calls)
    if not calls and "think" not in name:
        assert content == text


WRITTEN = {name: text.removeprefix("Let me see.\n") for name, text in TEXTS.items()}
WRITTEN |= dict.fromkeys(["pythonic", "functiongemma", "gemma4"], TEXTS["llama3_json"])
WRITTEN["mistral"] = TEXTS["mistral"].removeprefix("Let me see. ")


@pytest.mark.parametrize("reasoning", ["", "<think>Hm</think>\n"])
@pytest.mark.parametrize("name", FORMATS)
def test_wanted_calls_that_are_cut_leave_nothing_else(name: str, reasoning: str) -> None:
    format_ = MessageFormat(FORMATS[name], THINK if reasoning else None)
    text = reasoning + WRITTEN[name]
    parser = format_.parser_of_required_calls(SCHEMAS, False)
    deltas: list[MessageDelta] = []
    for length in range(len(text) + 1):
        by_letter = whole_of([*deltas, deepcopy(parser).finish()])
        for content, thought, calls in (
            by_letter,
            parse(format_.parser_of_required_calls(SCHEMAS, False), [text[:length]]),
        ):
            assert content == ""
            assert "Hm</think>".startswith(thought)
            assert [called for called, _ in calls] == ["weather", "time"][: len(calls)]
        deltas.append(parser.feed(text[length : length + 1]))
    assert len(calls) == 2


def test_reasoning() -> None:
    def split(text: str, is_open: bool = False) -> tuple[str, str]:
        content, reasoning, _ = parse(ReasoningParser(PlainText(), is_open), list(text))
        return content, reasoning

    assert split("<think>\nWell.\n</think>\n\nYes.") == ("Yes.", "\nWell.")
    assert split("Well.\n</think>Yes.", is_open=True) == ("Yes.", "Well.")
    assert split("cut off", is_open=True) == ("", "cut off")
    assert split("Yes, <think> is a tag.") == ("Yes, <think> is a tag.", "")
    brackets = ReasoningParser(PlainText(), False, TAGS["mistral"])
    assert parse(brackets, list("[THINK]Well.</think>[/THINK]Yes.")) == ("Yes.", "Well.</think>", [])
