"""Which tokens may come next, for the rows of a batch that a grammar constrains."""

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from app.core.sampling import SamplingParams
from app.grammar.compiler import GrammarCompiler
from app.text.tokenizer import Tokenizer

Constrained = list[tuple[int, LLMatcher]]
"""Some of a step's rows: their places in the step, and what their next tokens have to match."""


class Masks(NamedTuple):
    """What may come next in a step's constrained rows."""

    words: NDArray[np.int32]
    """(len(constrained), words): token t is allowed if bit t % 32 of number t // 32 is set."""
    dead_ends: list[int]
    """Places in the step where nothing is allowed: no text matches any more, or the grammar has become too complex."""


class GrammarMasks:
    """The matchers of a worker's rows, each of which has taken in the row's output so far."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """For the model in a folder, whose tokenizer is read when the first grammar comes."""
        self._compiler = GrammarCompiler(lambda: Tokenizer(folder), vocab_size)
        # One thread: the matchers of a grammar share a lexer, for which more threads wait longer than they compute.
        self._executor = LLExecutor(num_threads=1)
        self._matchers: dict[int, LLMatcher] = {}
        self.words = mask_words(vocab_size)
        """int32 numbers of a mask."""

    def compile(self, grammar: str) -> Future[None]:
        """Compile a grammar ahead of `add`. The future raises GrammarError."""
        return self._compiler.start(grammar)

    def add(self, row: int, sampling: SamplingParams, output: list[int]) -> None:
        """Give a row to a request, which may have generated tokens before (after a preemption)."""
        self._matchers.pop(row, None)
        if sampling.grammar:
            matcher = self._matchers[row] = self._compiler.matcher(sampling.grammar)
            matcher.consume_tokens(output)

    def constrained(self, rows: Iterable[int]) -> Constrained:
        """Those of `rows` that have a grammar."""
        if not self._matchers:
            return []
        return [(index, self._matchers[row]) for index, row in enumerate(rows) if row in self._matchers]

    def compute(self, constrained: Constrained) -> Masks:
        """What is allowed: where the text is complete, only end-of-sequence tokens are."""
        masks = np.zeros((len(constrained), self.words), dtype=np.int32)
        places = [(matcher, at) for at, (_, matcher) in enumerate(constrained)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], len(places))
        for at, (_, matcher) in enumerate(constrained):
            if matcher.is_error():
                masks[at] = 0
        return Masks(masks, [index for (index, _), mask in zip(constrained, masks, strict=True) if not mask.any()])


def mask_words(vocab_size: int) -> int:
    """int32 numbers that hold a bit for each token."""
    return -(-vocab_size // 32)


def accept(matcher: LLMatcher, token_id: int) -> None:
    """Take in what was sampled; negative if nothing could be. After the end of a text, nothing is taken in."""
    if token_id >= 0 and not matcher.is_stopped():
        matcher.consume_token(token_id)
