"""A grammar that ends the process in which it is checked harms nobody but its requester.

FUZZ_EXAMPLES=N tries N random grammars instead of a few.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.sampling import SamplingParams
from app.grammar import constraint
from app.grammar.checker import GrammarChecker
from app.grammar.constraint import GrammarError
from app.grammar.masks import GrammarMasks
from app.text.tokenizer import Tokenizer
from tests.patience import PATIENCE

CRASH = 'start: %json {"const": -9223372036854775808}'
"""The library recurses without end."""
SLOW = constraint.json_schema({"type": "integer", "multipleOf": 999983})
SLOW_MASKS = constraint.regex("a{99999}b{99999}")
LARGE = "start: A\nA: " + " & ".join(f"/(.*[a-z]{{{number}}}.*)/" for number in range(20, 40))


@pytest_asyncio.fixture
async def checker(embedded_model: Path) -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(embedded_model)
    yield checker
    await checker.close()


async def test_a_grammar_that_ends_the_process_is_an_error_and_the_next_one_is_checked(checker: GrammarChecker) -> None:
    good = constraint.json_object()
    for hostile, words in (
        (CRASH, "stack"),
        (SLOW, "too long|memory"),  # a fast machine reaches the other limit first
        (LARGE, "memory"),
        (SLOW_MASKS, "allows take too long"),
    ):
        results = await asyncio.gather(*(checker.check(one) for one in (good, hostile, good)), return_exceptions=True)
        assert results[0] == results[2] == good
        assert isinstance(results[1], GrammarError)
        assert re.search(words, str(results[1]))


async def test_a_requester_who_leaves_does_not_mix_up_the_others(checker: GrammarChecker) -> None:
    texts = [constraint.choice([str(number)]) for number in range(8)]
    tasks = [asyncio.create_task(checker.check(text)) for text in texts]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == texts[1::2]


async def test_whether_a_text_may_begin_so(checker: GrammarChecker) -> None:
    beginnings = ['{"name": "f", "parameters": {', '{"name": "g", "parameters": {']
    text = {"type": "string"}
    for schema, is_allowed in [
        ({"properties": {"name": text}}, True),
        ({"properties": {"name": {"const": "g"}, "parameters": {}}, "additionalProperties": False}, True),
        ({"properties": {"name": {"const": "h"}, "parameters": {}}, "additionalProperties": False}, False),
        ({"properties": {"name": text, "parameters": text}, "additionalProperties": False}, False),
        ({"properties": {"name": text, "city": text}, "required": ["name", "city"]}, False),
        ({"properties": {"city": text}, "required": ["city"]}, False),
    ]:
        grammar = constraint.json_schema({"type": "object", **schema})
        assert await checker.allows_beginning(grammar, beginnings) is is_allowed, schema
        assert await checker.check(grammar) == grammar
    with pytest.raises(GrammarError):
        await checker.allows_beginning(CRASH, beginnings)


async def test_gbnf_becomes_lark(checker: GrammarChecker) -> None:
    grammar = await checker.check('root ::= "yes" | "no" digit\ndigit ::= [0-9]+')
    assert "start:" in grammar
    with pytest.raises(GrammarError):
        await checker.check('root ::= "yes" | (')


# ---------------------------------------------------------------------- fuzzing

NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**53, 2**53 + 1, -(2**63), -(2.0**63), 2**63, 2**64, 1e308, -1e308, 5e-324, 0.1, -0.0, 10**400]
) | st.integers()  # fmt: skip
NAMES = st.sampled_from(["a", "b", "const", "$ref", "", "é", "<|im_end|>", "\u0000", '"', "a" * 300])
CONSTANTS = st.recursive(
    NUMBERS | NAMES | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PIECES = [
    "a",
    "[a-z]",
    ".",
    r"\d",
    r"\p{L}",
    "(?:",
    "(",
    ")",
    "|",
    "*",
    "+",
    "?",
    "{2,5}",
    "{0,1000}",
    "{99999}",
    "^",
    "$",
]
PIECES += ["(?=a)", r"\1", "[^\\x00]", "é", "\\", "(?i)", "&", "~", "/", "\n"]
REGEXES = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
TYPES = st.sampled_from(["string", "number", "integer", "boolean", "null", "array", "object", "x"])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose keywords have values of the right kind, mostly."""
    several, named = st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)
    of_keyword: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("const", "default"), CONSTANTS),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), NUMBERS),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), NUMBERS),
        **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), named),
        **dict.fromkeys(("items", "additionalProperties", "not", "if", "then", "contains", "propertyNames"), inner),
        **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), several),
        "enum": st.lists(CONSTANTS, max_size=4),
        "type": TYPES | st.lists(TYPES, max_size=3),
        "pattern": REGEXES,
        "format": st.sampled_from(["date", "uuid", "email", "ipv6", "uri", "x"]),
        "required": st.lists(NAMES, max_size=3),
        "$ref": st.sampled_from(
            ["#", "#/$defs/a", "#/properties/a", "#/x", "http://127.0.0.1:1/x", "file:///etc/passwd"]
        ),
        "$id": NAMES,
        "x-guidance": st.dictionaries(st.sampled_from(["whitespace_pattern", "lenient"]), CONSTANTS, max_size=1),
    }
    return st.fixed_dictionaries({}, optional=of_keyword)


SCHEMAS = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=8)
LARK_PIECES = [
    "start: ",
    "a: ",
    "A: ",
    "start",
    "a",
    "A",
    '"x"',
    "/[a-z]+/",
    "/(a|b)*c/",
    "|",
    "~3",
    "{1,9}",
    "*",
    "?",
    "\n",
    "(",
    ")",
]
LARK_PIECES += [
    "%json {}",
    '%json {"const": 1}',
    "%ignore /x/",
    "<[1]>",
    "<[1-99]>",
    "<[99999999]>",
    "<|im_end|>",
    '[suffix="x"]',
    "::= ",
]
LARK_PIECES += [
    "[max_tokens=3]",
    "[temperature=0.1]",
    "[capture]",
    "%regex {}",
    "@x",
    "&",
    "~",
    "%llguidance {}",
    "start ::= ",
]
LARK = st.lists(st.sampled_from(LARK_PIECES), max_size=25).map("".join)
GBNF_PIECES = [
    "root ::= ",
    "a ::= ",
    "root",
    "a",
    '"x"',
    "[a-z]",
    "[^\\n]",
    "|",
    "*",
    "+",
    "{2,3}",
    "(",
    ")",
    "\n",
    "#",
    "\\",
    ".",
]
GBNF = st.lists(st.sampled_from(GBNF_PIECES), max_size=25).map(lambda pieces: "root ::= " + "".join(pieces))


def schema_grammar(schema: Any) -> str:
    try:
        return constraint.json_schema(json.loads(json.dumps(schema)))
    except (ValueError, RecursionError):  # refused before it is checked
        return constraint.json_object()


GRAMMARS = st.one_of(SCHEMAS.map(schema_grammar), REGEXES.map(constraint.regex), LARK, GBNF)
_masks: GrammarMasks


def load(folder: Path) -> None:
    global _masks
    _masks = GrammarMasks(folder, Tokenizer(folder).vocab_size)


def follow(grammar: str) -> None:
    """What the engine does with a grammar that passed: it compiles it and matches what is sampled."""
    _masks.compile(grammar).result()
    _masks.add(0, SamplingParams(max_tokens=99, seed=0, grammar=grammar), [])
    rng = np.random.default_rng(len(grammar))
    for _ in range(60):
        constrained = _masks.constrained([0])
        allowed = np.flatnonzero(np.unpackbits(_masks.compute(constrained).words.view(np.uint8), bitorder="little"))
        if not len(allowed):
            return
        constrained[0][1].accept(int(rng.choice(allowed)))


@pytest.fixture(scope="module")
def engine(embedded_model: Path) -> Iterator[Callable[[str], None]]:
    """A process that a grammar which passed must not end."""
    with ProcessPoolExecutor(1, get_context("spawn"), load, (embedded_model,)) as pool:
        yield lambda grammar: pool.submit(follow, grammar).result(timeout=PATIENCE)


@pytest.fixture(scope="module")
def check(embedded_model: Path) -> Iterator[Callable[[str], str]]:
    """The checker, for a test that is no coroutine."""
    with asyncio.Runner() as runner:
        checker = GrammarChecker(embedded_model)
        yield lambda grammar: runner.run(checker.check(grammar))
        runner.run(checker.close())


@given(GRAMMARS)
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_a_grammar_that_passes_does_not_end_the_engine(
    check: Callable[[str], str], engine: Callable[[str], None], grammar: str
) -> None:
    try:
        checked = check(grammar)
    except GrammarError:
        return
    engine(checked)
