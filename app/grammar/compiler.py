"""Compiles grammars to matchers of tokens, and keeps them for other requests with the same grammar."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..text.tokenizer import Tokenizer
from .constraint import GrammarError

_MOST_KEPT = 32
_PRIVATE_USE = "\ue000"
"""A character that means nothing in Unicode."""
_LIMITS = LLParserLimits(max_lexer_states=20_000, step_max_items=10_000)
"""Two are below the library's defaults: the number of states, which take one or two kilobytes each and grow in number
while a text is matched, and the work for one mask. So a grammar compiles within a second, and a mask takes some ten
milliseconds. A grammar that needs more is an error."""


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The library's view of a tokenizer; it takes some hundred milliseconds to make.

    `vocab_size`: the number of logits, which may exceed the number of the tokenizer's tokens.
    """
    definition = _with_unwritable_names(tokenizer.to_json())
    return LLTokenizer(definition, n_vocab=vocab_size, eos_token=sorted(tokenizer.eos_token_ids))


def _with_unwritable_names(definition: str) -> str:
    """A tokenizer.json in which no text is the name of a special token.

    Where a grammar leaves one text only, the library has the tokenizer cut it into tokens. A fixed text such as
    "<|im_end|>" would become the token that ends the answer. Grammars name special tokens by number: <[7]>.
    """
    parsed = json.loads(definition)
    names = {token["content"] for token in parsed["added_tokens"] if token["special"]}
    for token in parsed["added_tokens"]:
        token["content"] = _renamed(token["content"], names)
    vocabulary = parsed["model"]["vocab"]
    if isinstance(vocabulary, dict):
        parsed["model"]["vocab"] = {_renamed(name, names): id_ for name, id_ in vocabulary.items()}
    else:  # Unigram's
        parsed["model"]["vocab"] = [[_renamed(name, names), score] for name, score in vocabulary]
    if parsed["model"].get("unk_token") is not None:
        parsed["model"]["unk_token"] = _renamed(parsed["model"]["unk_token"], names)
    return json.dumps(parsed)


def _renamed(name: str, names: set[str]) -> str:
    return _PRIVATE_USE + name if name in names else name


def compile_grammar(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the beginning of a text. Raises GrammarError with the library's reason."""
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise GrammarError(" ".join(matcher.get_error().split()))
    matcher.compute_bitmask()  # fails if no token may come first
    if matcher.is_error():
        raise GrammarError("no text matches it")
    return matcher


class GrammarCompiler:
    """Compiles grammars for the vocabulary of one model, in a thread of its own. The library releases Python's lock."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        """`vocab_size`: see `vocabulary_of`."""
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """Made when the first grammar arrives."""
        return vocabulary_of(self._load_tokenizer(), self._vocab_size)

    def start(self, grammar: str) -> Future[None]:
        """Compile a grammar ahead of `matcher`. The future raises GrammarError."""

        def compile_it() -> None:
            self._compile(grammar)

        return self._threads.submit(compile_it)

    def matcher(self, grammar: str) -> LLMatcher:
        """A new matcher, at the beginning of a text. Raises GrammarError."""
        with self._lock:
            kept = self._kept.get(grammar)
        return (kept or self._compile(grammar)).deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        matcher = compile_grammar(self._vocabulary, grammar)
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return matcher
