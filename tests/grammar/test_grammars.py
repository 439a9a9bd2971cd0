"""Texts of random tokens that a grammar allows are accepted by jsonschema and `re`."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from app.core.sampling import SamplingParams
from app.grammar import constraint
from app.grammar.compiler import GrammarCompiler
from app.grammar.constraint import GrammarError
from app.grammar.masks import GrammarMasks
from app.grammar.schema import adapt
from app.text.tokenizer import Tokenizer
from tests.patience import PATIENCE

SCHEMAS: dict[str, Any] = {
    "person": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 3}},
        "required": ["name"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["a", 1, None, {"b": [True]}]},
    "const": {"const": {"x": "ü\n\"'"}},
    "numbers": {"type": "array", "items": {"type": "number", "multipleOf": 5}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
    "either": {"anyOf": [{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "integer", "maximum": -2}]},
    "recursive": {
        "$defs": {"tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/tree"}}}}},
        "$ref": "#/$defs/tree",
    },
    "map": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "string", "format": "date"}},
            "additionalProperties": False},
    "anything": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def masks(embedded_model: Path) -> GrammarMasks:
    return GrammarMasks(embedded_model, Tokenizer(embedded_model).vocab_size)


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer(embedded_model)


def draw(masks: GrammarMasks, tokenizer: Tokenizer, grammar: str, seed: int, most: int = 120) -> str | None:
    """A text of tokens drawn from the allowed ones; None if it has not ended."""
    rng, token_ids = np.random.default_rng(seed), []
    masks.add(0, SamplingParams(max_tokens=most, seed=0, grammar=grammar), [])
    for _ in range(most):
        constrained = masks.constrained([0])
        bits = np.unpackbits(masks.compute(constrained).words.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits)
        assert len(allowed)
        ends = np.isin(allowed, list(tokenizer.eos_token_ids))
        if ends.all() or (ends.any() and rng.random() < 0.3):
            return tokenizer.decode(token_ids)
        token = int(rng.choice(allowed[~ends]))
        token_ids.append(token)
        constrained[0][1].accept(token)
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_that_a_grammar_lets_end_are_valid(masks: GrammarMasks, tokenizer: Tokenizer, name: str) -> None:
    grammar = constraint.json_schema(SCHEMAS[name])
    texts = [draw(masks, tokenizer, grammar, seed) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMAS[name], cls=jsonschema.Draft202012Validator)
        assert not re.search(r"[ \t\r\n]{41}", text)  # a model cannot go on with white space only


def test_regex_choice_and_grammar(masks: GrammarMasks, tokenizer: Tokenizer) -> None:
    for seed in range(5):
        text = draw(masks, tokenizer, constraint.regex(r"(ab|ü){1,3}-\d{2}"), seed)
        assert text is not None
        assert re.fullmatch(r"(ab|ü){1,3}-\d{2}", text)
        assert draw(masks, tokenizer, constraint.choice(["yes", 'no "!"\n', "é"]), seed) in ("yes", 'no "!"\n', "é")
        assert draw(masks, tokenizer, 'start: A "+" A\nA: "1" | "2"', seed) in (
            "1+1", "1+2", "2+1", "2+2",
        )  # fmt: skip


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>", "<|endoftext|>!"])
def test_a_fixed_text_that_looks_like_a_special_token_is_text(
    masks: GrammarMasks, tokenizer: Tokenizer, text: str
) -> None:
    assert draw(masks, tokenizer, constraint.choice([text]), 1) == text
    written = draw(masks, tokenizer, constraint.json_schema({"const": [text, {text: 1}]}), 1)
    assert written is not None
    assert json.loads(written) == [text, {text: 1}]


def test_formats_that_the_library_does_not_know_are_annotations() -> None:
    known = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
    others = {"password", "binary", "path", "regex", "json-pointer", "idn-email", "int32"}
    for name in known | others:
        schema = {"type": "string", "format": name}
        error = LLMatcher.validate_grammar(f"start: %json {json.dumps(schema)}", None)
        assert ("Unknown format" in error) == (name in others)
        assert adapt(schema) == (schema if name in known else {"type": "string"})
    assert adapt({"properties": {"format": {"format": "byte"}}}) == {"properties": {"format": {}}}


def test_a_matcher_goes_on_where_a_preempted_request_stood(masks: GrammarMasks, tokenizer: Tokenizer) -> None:
    sampling = SamplingParams(max_tokens=9, seed=0, grammar=constraint.choice(["red", "blue"]))
    masks.add(3, sampling, tokenizer.encode("bl"))
    masks.add(4, SamplingParams(max_tokens=9, seed=0), [])
    constrained = masks.constrained([4, 3])
    assert [index for index, _ in constrained] == [1]
    allowed = np.flatnonzero(np.unpackbits(masks.compute(constrained).words.view(np.uint8), bitorder="little"))
    texts = {tokenizer.token_text(int(token)) for token in allowed}
    assert texts
    assert texts <= {"u", "ue"}


def test_what_cannot_be_compiled_says_why(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    for grammar, words in (
        (constraint.regex("(a"), "unclosed group"),
        (constraint.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        ("start: x", "unknown name"),
        (constraint.regex(r"a[^\s\S]"), "no text matches"),
        (constraint.json_schema({"$ref": "#"}), "no text matches"),
        ("start: A\nA: /a/ & /b/", "no text matches"),
    ):
        with pytest.raises(GrammarError, match=words):
            compiler.start(grammar).result()


@pytest.mark.parametrize(
    ("schema", "number"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, -123),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, 2**62),
        ({"type": "integer", "exclusiveMinimum": 2**53, "maximum": 2**53 + 3}, 2**53 + 2),
        ({"type": "number", "minimum": -1e30}, 1.5),
        ({"properties": {"const": {"maximum": 2**63}}, "required": ["const"]}, {"const": 5}),
    ],
)
def test_bounds_beyond_53_bits(masks: GrammarMasks, tokenizer: Tokenizer, schema: Any, number: Any) -> None:
    masks.add(0, SamplingParams(max_tokens=9, seed=0, grammar=constraint.json_schema(schema)), [])
    [(_, row)] = masks.constrained([0])
    for token in tokenizer.encode(json.dumps(number)):
        row.accept(token)
    assert row.matcher.is_accepting()
    for seed in range(20):
        text = draw(masks, tokenizer, constraint.json_schema(schema), seed)
        if text is not None:
            jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("schema", [{"const": 2**53 + 1}, {"enum": [{"a": [-(2**63)]}]}, {"items": {"const": 10**30}}])
def test_a_constant_that_no_double_holds_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="exactly"):
        constraint.json_schema(schema)


@pytest.mark.parametrize(
    "schema", [{"type": "number", "minimum": 0.1, "maximum": 0.3}, {"type": "integer"}, {"type": "number"}]
)
def test_a_number_ends_though_only_digits_are_wanted(masks: GrammarMasks, tokenizer: Tokenizer, schema: Any) -> None:
    masks.add(0, SamplingParams(max_tokens=999, seed=0, grammar=constraint.json_schema(schema)), [])
    constrained = masks.constrained([0])
    wanted = [tokenizer.encode(char)[0] for char in "1234567890.-e+"]
    token_ids: list[int] = []
    while not constrained[0][1].matcher.is_stopped():
        allowed = np.unpackbits(masks.compute(constrained).words.view(np.uint8), bitorder="little")
        token = next((id_ for id_ in wanted if allowed[id_]), min(tokenizer.eos_token_ids))
        token_ids.append(token)
        assert len(token_ids) < 400
        constrained[0][1].accept(token)
    jsonschema.validate(json.loads(tokenizer.decode(token_ids)), schema)


def test_a_text_of_digits_only_is_not_cut(masks: GrammarMasks, tokenizer: Tokenizer) -> None:
    text = draw(masks, tokenizer, constraint.regex("[0-9]{100}"), 1)
    assert text is not None
    assert re.fullmatch("[0-9]{100}", text)


def test_hostile_grammars_are_compiled_or_refused_quickly_and_few_are_kept(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    for grammar in (
        constraint.json_schema({"enum": [f"value {number * 7919}" for number in range(10_000)]}),
        constraint.regex("(((a|b)*c){1,1000}d){1,1000}"),
        constraint.regex(".*a.{300}b"),
    ):
        compiler.start(grammar).result(timeout=PATIENCE)
    for number in range(100):
        compiler.start(constraint.choice([str(number)])).result()
    assert len(compiler._kept) == 32
