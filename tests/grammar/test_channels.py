"""A grammar constrains calls and answers of gpt-oss in their channels, and leaves its reasoning alone."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from app.checkpoint.byte_alphabet import byte_alphabet
from app.grammar import constraint
from app.grammar.compiler import GrammarCompiler
from app.grammar.reasoning import answer_behind, reasoning_prefix
from app.grammar.tool_calls import tool_calls
from app.text.harmony import ANALYSIS, BETWEEN, MARKERS
from app.text.tokenizer import Tokenizer as PacelineTokenizer
from app.text.tools.formats import HARMONY
from tests.text.test_harmony import FINAL, THINKS

FINAL_CHANNEL = FINAL.removesuffix("2 + 2 = 4.")
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    """For a tokenizer of bytes whose special tokens are the format's."""
    fast = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    folder: Path = tmp_path_factory.mktemp("channels")
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|return|>"}))
    tokenizer = PacelineTokenizer(folder)
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)


def allows(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    matcher = compiler.matcher(grammar)
    token_ids = compiler._load_tokenizer().encode(text, False)
    return bool(matcher.consume_tokens(token_ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("inner", "answer"),
    [
        (constraint.json_object(), '{"a": 1}'),
        (constraint.regex("a[bc]+"), "abc"),
        (constraint.choice(["alpha", "beta"]), "beta"),
        ('start: "x" rest\nrest: /[0-9]+/', "x42"),
    ],
)
def test_an_answer_in_its_channel(inner: str, answer: str, compiler: GrammarCompiler) -> None:
    tokenizer = compiler._load_tokenizer()
    grammar = answer_behind(reasoning_prefix(tokenizer, ANALYSIS, False, HARMONY), inner, HARMONY, tokenizer)
    assert allows(compiler, grammar, FINAL_CHANNEL + answer)
    assert allows(compiler, grammar, THINKS + FINAL_CHANNEL + answer)
    for text in (answer, THINKS + answer, FINAL_CHANNEL, FINAL_CHANNEL + "no", CALL):
        assert not allows(compiler, grammar, text), text
    opened = answer_behind(reasoning_prefix(tokenizer, ANALYSIS, True, HARMONY), inner, HARMONY, tokenizer)
    assert allows(compiler, opened, f"Hm.{BETWEEN}{FINAL_CHANNEL}{answer}")
    assert not allows(compiler, opened, FINAL_CHANNEL + answer)


def test_a_grammar_as_json_is_refused(compiler: GrammarCompiler) -> None:
    tokenizer = compiler._load_tokenizer()
    for grammars in ([{"json_schema": {"type": "object"}}], [{"lark_grammar": 'start: "a"'}] * 2):
        with pytest.raises(ValueError, match="in Lark or GBNF, not in JSON"):
            answer_behind(("", []), json.dumps({"grammars": grammars}), HARMONY, tokenizer)


def test_calls_and_an_answer_beside_them(compiler: GrammarCompiler) -> None:
    tokenizer = compiler._load_tokenizer()
    before = reasoning_prefix(tokenizer, ANALYSIS, False, HARMONY)
    schemas = {"f": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}}
    calls = tool_calls(HARMONY, schemas, True, tokenizer, before)
    either = tool_calls(HARMONY, schemas, False, tokenizer, before, answer=constraint.json_rule({"enum": [7]}))
    for begin in ("", THINKS):
        assert allows(compiler, calls, begin + CALL)
        assert allows(compiler, calls, begin + CALL + BETWEEN + CALL)
        assert not allows(compiler, calls, begin + CALL.replace("1", '"1"'))
        assert not allows(compiler, calls, begin + FINAL_CHANNEL + "7")
        assert allows(compiler, either, begin + CALL)
        assert allows(compiler, either, begin + FINAL_CHANNEL + "7")
        assert not allows(compiler, either, begin + CALL + BETWEEN + CALL)
