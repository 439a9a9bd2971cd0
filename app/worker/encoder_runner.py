"""Runs an encoder on many inputs at once: those of nearly the same length together, so that little is padding."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature

import torch
from torch import Tensor, nn

from ..core.step import ModelRunnerOutput, NewRequest, SchedulerOutput
from ..models.pooling import Pooler
from .faults import named_faults

_MOST_PADDING = 4
"""Inputs of a batch are at most a quarter shorter than its longest, or ..."""
_SHORT = 4
"""... this many tokens."""


class EncoderRunner:
    """The worker of an encoder: transformers' own model, which reads padded batches, and keeps nothing between steps.

    See `app.core.step.Worker`. An input is done after one step, which computes all of it.
    """

    def __init__(self, model: nn.Module, pooler: Pooler | None, device: torch.device, pad_id: int) -> None:
        """`pooler`: None for a classifier, whose logits are the result."""
        self.model = model
        self.pooler = pooler
        self.device = device
        self.pad_id = pad_id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._has_types = "token_type_ids" in signature(model.forward).parameters

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        return self._thread.submit(self._execute, step)

    def compile_grammar(self, grammar: str) -> Future[None]:  # noqa: ARG002
        """See `app.core.step.Worker`."""
        refused: Future[None] = Future()
        refused.set_exception(ValueError("an encoder generates no text"))
        return refused

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        """See `app.core.step.Worker`: it has no slots."""
        raise NotImplementedError

    def _execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        with named_faults():
            vectors = self.encode(step.new_requests)
        by_row = {request.row: vector for request, vector in zip(step.new_requests, vectors, strict=True)}
        return ModelRunnerOutput(
            [[] for _ in step.rows], vectors={index: by_row[row] for index, row in enumerate(step.rows)}
        )

    @torch.inference_mode()
    def encode(self, requests: Sequence[NewRequest]) -> list[bytes]:
        """Compute inputs; float32 numbers for each: the embedding, or the logit of each label."""
        vectors = [b""] * len(requests)
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].token_ids))
        for indices in _batches(order, [len(requests[index].token_ids) for index in order]):
            outputs = self._run([requests[index] for index in indices]).float().cpu().numpy()
            for index, vector in zip(indices, outputs, strict=True):
                vectors[index] = vector.tobytes()
        return vectors

    def _run(self, requests: list[NewRequest]) -> Tensor:
        """(inputs, dimensions), or (inputs, labels) of a classifier."""
        lengths = torch.tensor([len(request.token_ids) for request in requests], device=self.device)
        longest = int(lengths.max())
        inputs = {"input_ids": self._padded([request.token_ids for request in requests], longest, self.pad_id)}
        if self._has_types:
            inputs["token_type_ids"] = self._padded(
                [request.extras.type_ids or [0] * len(request.token_ids) for request in requests], longest, 0
            )
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        if longest > int(lengths.min()):
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


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Cut inputs, which are sorted by length, where the next would make too much padding."""
    start = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or lengths[at] - lengths[start] > max(_SHORT, lengths[at] // _MOST_PADDING):
            yield order[start:at]
            start = at
