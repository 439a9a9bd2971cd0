"""Reads texts: transformers' own models, on padded batches."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.step import NewRequest
from ..models.pooling import Pooler


class Batch(NamedTuple):
    """Inputs of nearly the same size, on the model's device."""

    input_ids: Tensor
    """(inputs, tokens), padded on the right."""
    lengths: Tensor
    """(inputs,): tokens that are no padding."""
    ignored: Tensor
    """(inputs,): tokens at the front that an embedding is made without."""
    sizes: list[int]
    """`lengths` on the host."""


Answer = Callable[[Any, Batch], Tensor | list[Tensor]]
"""From the output of transformers' model to numbers for each input."""


class TextEncoder:
    """A model that reads texts as a whole; see `app.worker.predictive_runner.Reader`."""

    def __init__(self, model: nn.Module, answer: Answer, device: torch.device, pad_id: int) -> None:
        """`pad_id`: of a token that is in the vocabulary."""
        self.model = model
        self.answer = answer
        self.device = device
        self.pad_id = pad_id
        # Encoders take all tokens to be of the type 0 if none is given. Decoders that know types have none then.
        self._has_types = "token_type_ids" in signature(model.forward).parameters

    def read(self, requests: Sequence[NewRequest]) -> Tensor | list[Tensor]:
        """See `Reader`: what `answer` gives."""
        sizes = [len(request.token_ids) for request in requests]
        longest = max(sizes)
        batch = Batch(
            self._padded([request.token_ids for request in requests], longest, self.pad_id),
            torch.tensor(sizes, device=self.device),
            torch.tensor([request.extras.num_ignored for request in requests], device=self.device),
            sizes,
        )
        inputs = {"input_ids": batch.input_ids}
        if self._has_types and any(any(request.extras.type_ids) for request in requests):
            inputs["token_type_ids"] = self._padded(
                [request.extras.type_ids or [0] * len(request.token_ids) for request in requests], longest, 0
            )
        if longest > min(sizes):
            mask = torch.arange(longest, device=self.device) < batch.lengths[:, None]
            inputs["attention_mask"] = mask.long()
        return self.answer(self.model(**inputs), batch)

    def _padded(self, rows: list[list[int]], length: int, value: int) -> Tensor:
        """(rows, length)"""
        padded = [row + [value] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.device)


def embedding(pooler: Pooler) -> Answer:
    """(inputs, dimensions): an embedding of each input."""

    def answer(output: Any, batch: Batch) -> Tensor:
        vectors: Tensor = pooler(output.last_hidden_state, batch.lengths, batch.ignored)
        return vectors

    return answer


def logits(output: Any, _batch: Batch) -> Tensor:
    """(inputs, labels): what an encoder's classifier gives."""
    given: Tensor = output.logits
    return given


def logits_of_tokens(output: Any, batch: Batch) -> list[Tensor]:
    """(tokens, labels) for each input."""
    return [given[:size] for given, size in zip(output.logits, batch.sizes, strict=True)]


def logits_of_last(output: Any, batch: Batch) -> Tensor:
    """(inputs, labels): the last token's, of a model that gives them for all tokens."""
    last: Tensor = output.logits[torch.arange(len(batch.sizes), device=batch.lengths.device), batch.lengths - 1]
    return last


def logits_behind_last(head: nn.Module, padding: int | None) -> Answer:
    """(inputs, labels): a head on the hidden state of the last token that is no padding, as decoders classify.

    `padding`: the token by which transformers tells padding, also where it is a part of an input; None if by nothing.
    """

    def answer(output: Any, batch: Batch) -> Tensor:
        hidden: Tensor = output.last_hidden_state
        places = torch.arange(hidden.shape[1], device=hidden.device)
        counts = places < batch.lengths[:, None]
        if padding is not None:
            counts &= batch.input_ids != padding
        last = (places * counts).argmax(dim=1)
        given: Tensor = head(hidden[torch.arange(len(last), device=hidden.device), last])
        return given

    return answer
