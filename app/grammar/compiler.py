"""Grammars that are ready to match tokens: compiled once, and kept for those who use the same one."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from app.text.tokenizer import Tokenizer

_MOST_KEPT = 32
_LIMITS = LLParserLimits(max_lexer_states=20_000)
"""The library's own but for the states, of one or two kilobytes each, whose number grows while a text is matched.
Compiling ends within a second, and a mask within some ten milliseconds; a grammar that needs more is an error."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled; the text says why, in the library's words."""


class GrammarCompiler:
    """Compiles grammars for one model's vocabulary, in threads of its own: the library lets others run meanwhile."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        """`vocab_size`: the number of logits, which may be more than the tokenizer has tokens."""
        self._load_tokenizer = load_tokenizer
        self.vocab_size = vocab_size
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Made with the first grammar: it takes some hundred milliseconds."""
        tokenizer = self._load_tokenizer()
        eos = sorted(tokenizer.eos_token_ids)
        return LLTokenizer(tokenizer.to_json(), n_vocab=self.vocab_size, eos_token=eos)

    def start(self, grammar: str) -> Future[None]:
        """Compile a grammar, so that `matcher` has it at hand. The future raises GrammarError."""

        def compile_it() -> None:
            self._compile(grammar)

        return self._threads.submit(compile_it)

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of its text. Raises GrammarError."""
        with self._lock:
            kept = self._kept.get(grammar)
        return (kept or self._compile(grammar)).deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(" ".join(matcher.get_error().split()))
        matcher.compute_bitmask()  # fails where nothing may come first
        if matcher.is_error():
            raise GrammarError("no text matches it")
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return matcher
