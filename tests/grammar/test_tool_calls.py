"""The parser of a format reads every call that the format's grammar allows, and the arguments match the schema."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from app.api.chat.schema import FunctionDefinition
from app.checkpoint.byte_alphabet import byte_alphabet
from app.grammar.compiler import GrammarCompiler
from app.grammar.constraint import json_rule
from app.grammar.reasoning import reasoning_prefix
from app.grammar.tool_calls import tool_calls
from app.text.detokenizer import make_detokenizer
from app.text.message_format import MessageFormat
from app.text.reasoning import TAGS, THINK, ReasoningTags
from app.text.tokenizer import Tokenizer as PacelineTokenizer
from app.text.tools.formats import format_of_required_calls
from app.text.tools.tags import DSML
from tests.text.test_message_parsers import FORMATS, Whole, parse

MARKERS = [
    *dict.fromkeys(
        marker for format_ in FORMATS.values() for marker in format_.markers if "<|" in marker or "▁" in marker
    ),
    DSML,
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<|channel>",
    "<channel|>",
]
SCHEMAS = {
    "book.table": {
        "type": "object",
        "properties": {
            "seats": {"type": "integer", "minimum": 1, "maximum": 12},
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        },
        "required": ["seats", "name"],
        "additionalProperties": False,
        "$defs": {"tag": {"enum": ['a "b"', "</tool_call>", "]}", "; é"]}},
    },
    "cancel": {"additionalProperties": False},
    "note": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "any"},
            "kind": {"enum": ["a", "b c", "null"]},
            "until": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "times": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
            "by": {"$ref": "#/$defs/by"},
        },
        "required": ["text", "kind", "times"],
        "additionalProperties": False,
        "$defs": {"by": {"type": "string", "enum": ["me"]}},
    },
}
"""What the first schema says of a string's length cannot be written in tags, so its calls are JSON in every format."""


@pytest.fixture(scope="module", params=["letters", "added", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PacelineTokenizer:
    """A tokenizer of bytes. The markers are ordinary text, tokens, or special tokens."""
    fast = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    if request.param != "letters":
        fast.add_tokens([AddedToken(marker, special=request.param == "special") for marker in MARKERS])
    folder: Path = tmp_path_factory.mktemp(request.param)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return PacelineTokenizer(folder)


@pytest.mark.parametrize("reasoning", [None, "<think>Hm </thi</think>\n\n", "Hm\n</think>"])
@pytest.mark.parametrize("name", FORMATS)
def test_calls_that_a_grammar_allows_are_parsed(name: str, reasoning: str | None, tokenizer: PacelineTokenizer) -> None:
    message_format = MessageFormat(FORMATS[name], None if reasoning is None else THINK)
    is_open = reasoning is not None and not reasoning.startswith("<think>")
    before = ("", []) if reasoning is None else reasoning_prefix(tokenizer, THINK, is_open, FORMATS[name])
    # Random letters take long to end a text in quotes, so only tags have one without a bound.
    schemas = {called: SCHEMAS[called] for called in SCHEMAS if FORMATS[name].tags or called != "note"}
    grammar = tool_calls(format_of_required_calls(FORMATS[name]), schemas, True, tokenizer, before)
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    numbers = set()
    for seed in range(12):
        if seed >= 4 and len(numbers) > 1:
            break
        matcher = compiler.matcher(grammar)
        begun = tokenizer.encode(reasoning or "", False)
        assert matcher.consume_tokens(begun)
        tags = FORMATS[name].tags
        end = [] if tags is None else [*tags.end_of_argument.strip("\n").encode()]
        walk = _random_walk(matcher, random.Random(seed), tokenizer.vocab_size, tokenizer.eos_token_ids, end)
        token_ids = begun + walk
        content, thought, calls = _read(token_ids, message_format, is_open, tokenizer)
        assert content == ""
        assert thought == (reasoning or "").removeprefix("<think>").rstrip("\n").removesuffix("</think>").rstrip("\n")
        numbers.add(len(calls))
        for called, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[called])
    assert len(numbers) > 1  # one call, and several


def _random_walk(
    matcher: LLMatcher, rng: random.Random, vocab_size: int, eos: frozenset[int], end_of_text: list[int]
) -> list[int]:
    """Random tokens that the grammar allows, until it may end or sometimes a little further.

    `end_of_text`: what ends a text in tags, which random letters never do.
    """
    token_ids: list[int] = []
    while not (matcher.is_accepting() and rng.random() < 0.5):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        if end_of_text and rng.random() < 0.2 and matcher.validate_tokens(end_of_text) == len(end_of_text):
            assert matcher.consume_tokens(end_of_text)
            token_ids += end_of_text
            continue
        allowed = [id_ for id_ in np.flatnonzero(bits[:vocab_size]).tolist() if id_ not in eos]
        if not allowed:
            break
        token_ids.append(rng.choice(allowed))
        assert matcher.consume_token(token_ids[-1])
        assert len(token_ids) < 20_000
    return token_ids


def _read(token_ids: list[int], format_: MessageFormat, in_reasoning: bool, tokenizer: PacelineTokenizer) -> Whole:
    detokenizer = make_detokenizer(tokenizer, [], format_.shown(tokenizer, True))
    pieces = [*map(detokenizer.feed, token_ids), detokenizer.finish()]
    return parse(format_.parser_of_required_calls(SCHEMAS, in_reasoning), pieces)


@pytest.mark.parametrize(
    ("more", "is_allowed"),
    [({}, False), ({"additionalProperties": True}, True), ({"anyOf": [{"properties": {"table": {}}}]}, True)],
)
def test_a_call_has_no_arguments_that_its_schema_does_not_name(
    more: dict[str, Any], is_allowed: bool, tokenizer: PacelineTokenizer
) -> None:
    parameters = {"type": "object", "properties": {"seats": {"type": "integer"}}, **more}
    schema = FunctionDefinition(name="book", parameters=parameters).schema_of_arguments()
    grammar = tool_calls(FORMATS["hermes"], {"book": schema}, True, tokenizer, ("", []))
    matcher = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size).matcher(grammar)
    call = '<tool_call>\n{"name": "book", "arguments": {"seats": 2, "table": 3}}\n</tool_call>'
    assert matcher.consume_tokens(tokenizer.encode(call, False)) == is_allowed


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1, 3, 999])
def test_an_answer_in_json_is_told_from_calls(name: str, size: int) -> None:
    """Also one with the name of a function, or that was cut there: a call begins as the grammar of calls has it."""
    format_ = MessageFormat(FORMATS[name], THINK)

    def parsed(text: str) -> Whole:
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        return parse(format_.parser_of_required_calls(SCHEMAS, False, or_answer=True), pieces)

    for answer in ('{"name": "cancel"}', '{"name": "can', '{"name": "cancel", "parameters": 3}', "[]", "3", ""):
        assert parsed(answer) == (answer, "", [])
        assert parsed(f"<think>Hm</think>{answer}") == (answer, "Hm", [])
    calls = format_of_required_calls(format_.tools)
    one = f"{calls.head('cancel')}{{}}{calls.after_arguments}"
    text = f"{calls.begin}{one}{calls.between}{one}{calls.end}"
    assert parsed(text) == ("", "", [("cancel", "{}")] * 2)
    if calls.looks_like_json:
        assert parsed('\n{ "name":"cancel" ,\n"parameters" : {}\n}; ') == ("", "", [("cancel", "{}")])


@pytest.mark.parametrize("name", FORMATS)
def test_a_grammar_allows_calls_or_the_answer(name: str, tokenizer: PacelineTokenizer) -> None:
    """The answer begins as the calls do where these are JSON, and references of arguments hold."""
    answer = json_rule(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        }
    )
    format_ = format_of_required_calls(FORMATS[name])
    grammar = tool_calls(format_, {"book.table": SCHEMAS["book.table"]}, True, tokenizer, answer=answer)
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)

    def is_allowed(text: str) -> bool:
        matcher = compiler.matcher(grammar)
        return bool(matcher.consume_tokens(tokenizer.encode(text, False)) and matcher.is_accepting())

    for name_ in ("book.table", "book", "x"):
        assert is_allowed(json.dumps({"name": name_}))
    if format_.tags:
        return
    for tag, is_valid in (("; é", True), ("other", False)):
        arguments = json.dumps({"seats": 2, "name": "Ann", "tags": [tag]}, ensure_ascii=False)
        one = f"{format_.head('book.table')}{arguments}{format_.after_arguments}"
        for calls in (one, f"{one}{format_.between}{one}"):
            assert is_allowed(f"{format_.begin}{calls}{format_.end}") == is_valid
        assert not is_allowed(f'{one}{{"name": "x"}}')


def test_markers_are_hidden_where_nobody_reads_them(tokenizer: PacelineTokenizer) -> None:
    special = {marker: tokenizer.added_id(marker) for marker in MARKERS if tokenizer.special_ids - {256}}
    format_ = MessageFormat(FORMATS["hermes"], THINK)
    assert format_.shown(tokenizer, False) == {id_ for marker, id_ in special.items() if "think" in marker}
    shown = {id_ for marker, id_ in special.items() if "think" in marker or marker in FORMATS["hermes"].markers}
    assert format_.shown(tokenizer, True) == shown


@pytest.mark.parametrize("tags", TAGS.values())
def test_the_reasoning_that_a_prompt_has_opened_comes_first(tags: ReasoningTags, tokenizer: PacelineTokenizer) -> None:
    before = reasoning_prefix(tokenizer, tags, True, FORMATS["hermes"])
    grammar = tool_calls(FORMATS["hermes"], SCHEMAS, True, tokenizer, before)
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    call = '<tool_call>\n{"name": "cancel", "arguments": {}}\n</tool_call>'
    for text, is_whole in [(call, False), (f"Hm.{tags.close}{call}", True), (f"Hm.{tags.close}", False)]:
        matcher = compiler.matcher(grammar)
        matcher.consume_tokens(tokenizer.encode(text, False))
        assert matcher.is_accepting() is is_whole


def test_required_calls_have_the_tags_that_the_template_shows(tokenizer: PacelineTokenizer) -> None:
    """Only a schema that says more than tags can hold is written as JSON, which the same parser reads."""
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    grammar = tool_calls(FORMATS["qwen3_coder"], SCHEMAS, True, tokenizer)

    def is_allowed(text: str) -> bool:
        matcher = compiler.matcher(grammar)
        token_ids = tokenizer.encode(text, False)
        return bool(matcher.validate_tokens(token_ids) == len(token_ids))

    note = "<tool_call>\n<function=note>\n<parameter=text>\nHi\n{}</parameter>\n<parameter=kind>\n{}\n</parameter>\n"
    assert is_allowed(
        note.format("<b>\n\n", "b c") + "<parameter=times>\n[1, 2]\n</parameter>\n</function>\n</tool_call>"
    )
    assert is_allowed("<tool_call>\n<function=cancel>\n</function>\n</tool_call>\n<tool_call>")
    assert is_allowed('<tool_call>\n{"name": "book.table", "arguments": {"seats": 1')
    assert not is_allowed(note.format("", "z"))
    assert not is_allowed('<tool_call>\n{"name": "note"')
    assert not is_allowed("<tool_call>\n<function=book.table>")
    assert not is_allowed(note.format("", "a") + "</function>")


VALUES = st.sampled_from([None, True, 5, "", "string", "integer", "#/$defs/a", "#/properties/a", [], {}])
KEYS = ["type", "properties", "required", "$defs", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "a", "title"]
ODD = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=6
)
CALL = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"


@given(
    st.dictionaries(st.sampled_from(KEYS), ODD),
    st.none() | st.dictionaries(st.just("a"), st.dictionaries(st.sampled_from(KEYS), ODD, min_size=1), min_size=1),
)
def test_a_schema_that_makes_no_sense_is_no_fault_of_the_server(
    tokenizer: PacelineTokenizer, schema: dict[str, Any], properties: dict[str, Any] | None
) -> None:
    """It may be refused as a ValueError, when a grammar is made of it. Calls that nobody asked for are parsed."""
    schema = schema if properties is None else schema | {"properties": properties}
    with suppress(ValueError):
        tool_calls(FORMATS["qwen3_coder"], {"f": schema}, True, tokenizer)
    content, _, ((name, arguments),) = parse(FORMATS["qwen3_coder"].parser({"f": schema}), [CALL])
    assert (content, name, str(json.loads(arguments)["a"])) == ("", "f", "1")
