"""Masks of the tokens that may come next, for the rows of a batch that have a grammar."""

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from ..core.sampling import SamplingParams
from ..text.tokenizer import Tokenizer
from .compiler import GrammarCompiler

_MOST_DIGITS = 64
"""Digits in a row. JSON does not bound a number's length, and a model may go on until its tokens run out."""


class Digits:
    """Which tokens of a vocabulary are digits."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        texts = [tokenizer.token_bytes(id_) for id_ in range(vocab_size)]
        self.counts = bytes(min(len(text), 255) if text.isdigit() else 0 for text in texts)
        """Of each token, how many digits it is; 0 if there is anything else in it."""
        others = np.zeros(mask_words(vocab_size) * 32, dtype=np.uint8)
        others[:vocab_size] = [not text[:1].isdigit() for text in texts]
        self.others = np.packbits(others, bitorder="little").view(np.int32)
        """(words,): a mask of the tokens that do not begin with a digit."""


class RowMatcher:
    """Follows the text of a row through its grammar."""

    def __init__(self, matcher: LLMatcher, digits: Digits) -> None:
        self.matcher = matcher
        self._digits = digits
        self._num_digits = 0  # at the end of the text

    def accept(self, token_id: int) -> None:
        """Consume a sampled token, unless it is negative (none could be sampled) or the text has ended."""
        if token_id >= 0 and not self.matcher.is_stopped():
            self.matcher.consume_token(token_id)
            count = self._digits.counts[token_id]
            self._num_digits = self._num_digits + count if count else 0

    def follow(self, token_id: int) -> "RowMatcher | None":
        """Another matcher, of the text with a token that may be sampled; None if the grammar does not allow it.

        A text that has ended stays as it is: what is sampled then are end-of-sequence tokens, if they end no request.
        """
        if self.matcher.is_stopped():
            return self
        follower = RowMatcher(self.matcher.deep_copy(), self._digits)  # takes two microseconds
        follower._num_digits = self._num_digits
        if not follower.matcher.validate_tokens([token_id]):
            return None
        follower.accept(token_id)
        return follower

    def bound(self, mask: NDArray[np.int32]) -> None:
        """Take digits out of a mask (words,) after very many of them, unless nothing else may follow."""
        if self._num_digits >= _MOST_DIGITS:
            others = mask & self._digits.others
            if others.any():
                mask[:] = others


Constrained = list[tuple[int, RowMatcher]]
"""The rows of a step that have a grammar: the place of each in the step, and its matcher. A row with drafts has several
places."""


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
        self._folder = folder
        self._vocab_size = vocab_size
        self._compiler = GrammarCompiler(self._load_tokenizer, vocab_size)
        self._digits: Digits | None = None
        # One thread: a grammar's matchers share a lexer, for which several threads would wait longer than they compute.
        self._executor = LLExecutor(num_threads=1)
        self._matchers: dict[int, RowMatcher] = {}
        self.words = mask_words(vocab_size)
        """Number of int32 words in a mask."""

    def _load_tokenizer(self) -> Tokenizer:
        """Read the tokenizer, and look at all of its tokens: in the compiler's thread, because no step should wait."""
        tokenizer = Tokenizer(self._folder)
        self._digits = Digits(tokenizer, self._vocab_size)
        return tokenizer

    def compile(self, grammar: str) -> Future[None]:
        """Compile a grammar ahead of `add`. The future raises GrammarError."""
        return self._compiler.start(grammar)

    def add(self, row: int, sampling: SamplingParams, output: list[int]) -> None:
        """Give a row to a request, which has generated tokens before if it was preempted."""
        self._matchers.pop(row, None)
        if sampling.grammar:
            compiled = self._compiler.matcher(sampling.grammar)
            assert self._digits is not None  # since the tokenizer has been read
            matcher = self._matchers[row] = RowMatcher(compiled, self._digits)
            for token_id in output:
                matcher.accept(token_id)

    def constrained(self, rows: Iterable[int]) -> Constrained:
        """Those of `rows` that have a grammar."""
        if not self._matchers:
            return []
        return [(index, self._matchers[row]) for index, row in enumerate(rows) if row in self._matchers]

    def compute(self, constrained: Constrained, drafts: NDArray[np.int64] | None = None) -> Masks:
        """Compute the masks. Where the text is complete, only end-of-sequence tokens are allowed.

        With drafts, a row has several places, one behind the other. drafts (places of the step,): the guess of what is
        sampled there, which the row's next place goes on from; negative at its last one.
        """
        masks = np.zeros((len(constrained), self.words), dtype=np.int32)
        if drafts is None:
            self._fill(masks, [row for _, row in constrained])
        else:
            self._fill_in_turn(masks, constrained, drafts)
        return Masks(masks, [index for (index, _), mask in zip(constrained, masks, strict=True) if not mask.any()])

    def _fill_in_turn(self, masks: NDArray[np.int32], constrained: Constrained, drafts: NDArray[np.int64]) -> None:
        """Nothing is allowed behind a guess that the grammar does not allow: nobody will look there."""
        follower: RowMatcher | None = None
        is_first = True
        for at, (place, row) in enumerate(constrained):
            follower = row if is_first else follower
            is_first = drafts[place] < 0
            if follower is not None:
                self._fill(masks[at : at + 1], [follower])
                follower = None if is_first else follower.follow(int(drafts[place]))

    def _fill(self, masks: NDArray[np.int32], rows: list[RowMatcher]) -> None:
        places = [(row.matcher, at) for at, row in enumerate(rows)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], len(places))
        for mask, row in zip(masks, rows, strict=True):
            if row.matcher.is_error():
                mask[:] = 0
            row.bound(mask)


def mask_words(vocab_size: int) -> int:
    """Number of int32 words that hold a bit for each token."""
    return -(-vocab_size // 32)
