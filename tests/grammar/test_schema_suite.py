"""The JSON-Schema test suite: what is drawn blindly from a schema that can be followed is valid, if it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.checkpoint.source import find_model
from app.grammar import constraint
from app.grammar.compiler import GrammarCompiler
from app.grammar.constraint import GrammarError
from app.grammar.masks import GrammarMasks
from app.text.tokenizer import Tokenizer
from tests.clients.environments import source_of
from tests.grammar.test_grammars import draw
from tests.patience import PATIENCE

pytestmark = pytest.mark.clients
DRAWS, MOST_TOKENS = 4, 50


def schemas(suite: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(suite.rglob("tests/draft2020-12/*.json")):
        for case in json.loads(file.read_text()):
            yield f"{file.stem}: {case['description']}", case["schema"]


def grammar_of(compiler: GrammarCompiler, schema: Any) -> str | None:
    """The grammar of a schema; None if the schema cannot be followed and is refused."""
    try:
        grammar = constraint.json_schema(schema)
        compiler.start(grammar).result(timeout=PATIENCE)
    except (GrammarError, ValueError, RecursionError):
        return None
    return grammar


def test_the_json_schema_test_suite() -> None:
    folder = find_model("embedded")
    tokenizer = Tokenizer(folder)
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)
    masks = GrammarMasks(folder, tokenizer.vocab_size)
    counts, wrong = {"followed": 0, "ended": 0}, []
    for name, schema in schemas(source_of("jsonschema", "4.26.0")):
        if (grammar := grammar_of(compiler, schema)) is None:
            continue
        counts["followed"] += 1
        for seed in range(DRAWS):
            text = draw(masks, tokenizer, grammar, seed, MOST_TOKENS)
            if text is None:
                continue
            counts["ended"] += 1
            errors = jsonschema.Draft202012Validator(schema).iter_errors(json.loads(text))
            wrong += [f"{name}: {text[:200]}: {error.message}" for error in errors]
    assert not wrong
    assert counts["followed"] > 150, counts
    assert counts["ended"] > 200, counts
