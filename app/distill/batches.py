"""Answers as tensors, and the order in which the student sees them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .answers import Answer

_SORTED = 64
"""Answers that are sorted by length before they are divided, so that texts of a batch have similar lengths."""


@dataclass(frozen=True)
class Batch:
    """Texts of different lengths, with padding in front, so that all answers stand at the end."""

    answers: Sequence[Answer]
    token_ids: Tensor
    """(rows, length) int64, each text without its last token, which predicts nothing."""
    mask: Tensor
    """(rows, length) int64, 0 for padding."""
    is_scored: Tensor
    """(rows, kept) bool: whether one of the last `kept` tokens predicts a token of the answer. There are n of them."""
    top_ids: Tensor
    """(n, top); this and the next ones: see `Answer`."""
    top_logprobs: Tensor
    rest: Tensor

    @property
    def positions(self) -> Tensor:
        """(rows, length): of tokens in their texts."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)


def make_batch(answers: Sequence[Answer], device: torch.device) -> Batch:
    """The batch of these answers, in their order."""
    texts = [answer.question.prompt + answer.tokens[:-1] for answer in answers]
    length, kept = max(map(len, texts)), max(len(answer.tokens) for answer in answers)

    def tensor(rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=device)

    return Batch(
        answers,
        tensor([[0] * (length - len(text)) + text for text in texts]),
        tensor([[0] * (length - len(text)) + [1] * len(text) for text in texts]),
        tensor([[0] * (kept - len(answer.tokens)) + [1] * len(answer.tokens) for answer in answers]).bool(),
        torch.tensor([ids for answer in answers for ids in answer.top_ids], device=device),
        torch.tensor([values for answer in answers for values in answer.top_logprobs], device=device),
        torch.tensor([value for answer in answers for value in answer.rest], device=device),
    )


def divide(answers: Sequence[Answer], max_tokens: int) -> Iterator[Sequence[Answer]]:
    """Parts that have at most so many tokens each, padding included, unless one answer alone has more."""
    part: list[Answer] = []
    longest = 0
    for answer in answers:
        size = len(answer.question.prompt) + len(answer.tokens)
        if part and max(longest, size) * (len(part) + 1) > max_tokens:
            yield part
            part, longest = [], 0
        part.append(answer)
        longest = max(longest, size)
    if part:
        yield part


def epoch(answers: Sequence[Answer], max_tokens: int, seed: int, number: int) -> list[Sequence[Answer]]:
    """All answers once, in parts. The order is a function of the seed and the epoch's number."""
    chance = random.Random(f"{seed} {number}")
    shuffled = chance.sample(answers, len(answers))
    parts: list[Sequence[Answer]] = []
    for start in range(0, len(shuffled), _SORTED):
        some = sorted(shuffled[start : start + _SORTED], key=lambda each: len(each.question.prompt) + len(each.tokens))
        parts += divide(some, max_tokens)
    chance.shuffle(parts)
    return parts
