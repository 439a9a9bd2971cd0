"""Masks of the tokens that may come next, for the rows of a batch that have a grammar."""

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
"""The rows of a step that have a grammar: the place of each in the step, and its matcher."""


class Masks(NamedTuple):
    """The tokens that may come next in a step's constrained rows."""

    words: NDArray[np.int32]
    """(len(constrained), words): token t is allowed if bit t % 32 of number t // 32 is set."""
    dead_ends: list[int]
    """Places in the step where no token is allowed: no text can match any more, or the grammar is too complex."""


class GrammarMasks:
    """The matchers of a worker's rows. Each has consumed the row's output so far."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """For the model in a folder. Its tokenizer is read when the first grammar arrives."""
        self._compiler = GrammarCompiler(lambda: Tokenizer(folder), vocab_size)
        # One thread: a grammar's matchers share a lexer, for which several threads would wait longer than they compute.
        self._executor = LLExecutor(num_threads=1)
        self._matchers: dict[int, LLMatcher] = {}
        self.words = mask_words(vocab_size)
        """Number of int32 words in a mask."""

    def compile(self, grammar: str) -> Future[None]:
        """Compile a grammar ahead of `add`. The future raises GrammarError."""
        return self._compiler.start(grammar)

    def add(self, row: int, sampling: SamplingParams, output: list[int]) -> None:
        """Give a row to a request, which has generated tokens before if it was preempted."""
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
        """Compute the masks. Where the text is complete, only end-of-sequence tokens are allowed."""
        masks = np.zeros((len(constrained), self.words), dtype=np.int32)
        places = [(matcher, at) for at, (_, matcher) in enumerate(constrained)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], len(places))
        for at, (_, matcher) in enumerate(constrained):
            if matcher.is_error():
                masks[at] = 0
        return Masks(masks, [index for (index, _), mask in zip(constrained, masks, strict=True) if not mask.any()])


def mask_words(vocab_size: int) -> int:
    """Number of int32 words that hold a bit for each token."""
    return -(-vocab_size // 32)


def accept(matcher: LLMatcher, token_id: int) -> None:
    """Consume a sampled token, unless it is negative (none could be sampled) or the text has ended."""
    if token_id >= 0 and not matcher.is_stopped():
        matcher.consume_token(token_id)
