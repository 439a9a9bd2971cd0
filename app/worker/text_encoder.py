"""Reads texts: transformers' own encoders, on padded batches."""

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor, nn

from ..core.step import NewRequest
from ..models.pooling import Pooler


class TextEncoder:
    """An encoder of texts; see `app.worker.predictive_runner.Reader`."""

    def __init__(self, model: nn.Module, pooler: Pooler | None, device: torch.device, pad_id: int) -> None:
        """`pooler`: None for a classifier, whose logits are the result."""
        self.model = model
        self.pooler = pooler
        self.device = device
        self.pad_id = pad_id
        self._has_types = "token_type_ids" in signature(model.forward).parameters

    def read(self, requests: Sequence[NewRequest]) -> Tensor:
        """(inputs, dimensions), or (inputs, labels) of a classifier."""
        lengths = torch.tensor([len(request.token_ids) for request in requests])
        longest, shortest = int(lengths.max()), int(lengths.min())
        lengths = lengths.to(self.device)
        inputs = {"input_ids": self._padded([request.token_ids for request in requests], longest, self.pad_id)}
        if self._has_types:
            inputs["token_type_ids"] = self._padded(
                [request.extras.type_ids or [0] * len(request.token_ids) for request in requests], longest, 0
            )
        if longest > shortest:
            mask = torch.arange(longest, device=self.device) < lengths[:, None]
            inputs["attention_mask"] = mask.long()
        output = self.model(**inputs)
        if self.pooler is None:
            logits: Tensor = output.logits
            return logits
        ignored = torch.tensor([request.extras.num_ignored for request in requests], device=self.device)
        vectors: Tensor = self.pooler(output.last_hidden_state, lengths, ignored)
        return vectors

    def _padded(self, rows: list[list[int]], length: int, value: int) -> Tensor:
        """(rows, length)"""
        padded = [row + [value] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.device)
