"""Runs a model that answers with numbers on many inputs at once: those of nearly the same size together."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from ..core.step import ModelRunnerOutput, NewRequest, SchedulerOutput
from .faults import named_faults
from .similar_sizes import batches

_MOST_TOKENS = 16384
"""Of a batch, unless a single input has more. A step may have more where a model reads long inputs."""


class Reader(Protocol):
    """A model that reads inputs as a whole, and keeps nothing of them."""

    def read(self, requests: Sequence[NewRequest]) -> Tensor | list[Tensor]:
        """Numbers for each of several inputs of nearly the same size, on the model's device."""
        ...


class PredictiveRunner:
    """The worker of a model that answers with numbers; see `app.core.step.Worker`.

    An input is done after one step, which computes all of it.
    """

    def __init__(self, reader: Reader, pads: bool = True) -> None:
        """`pads`: whether inputs of different sizes can be read together."""
        self.reader = reader
        self.pads = pads
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predictor")

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        return self._thread.submit(self._execute, step)

    def compile_grammar(self, grammar: str) -> Future[None]:  # noqa: ARG002
        """See `app.core.step.Worker`."""
        refused: Future[None] = Future()
        refused.set_exception(ValueError("the model generates no text"))
        return refused

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        """See `app.core.step.Worker`: it has no slots."""
        raise NotImplementedError

    def _execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        with named_faults():
            vectors = self.predict(step.new_requests)
        by_row = {request.row: vector for request, vector in zip(step.new_requests, vectors, strict=True)}
        return ModelRunnerOutput(
            [[] for _ in step.rows], vectors={index: by_row[row] for index, row in enumerate(step.rows)}
        )

    @torch.inference_mode()
    def predict(self, requests: Sequence[NewRequest]) -> list[bytes]:
        """Compute inputs; float32 numbers for each."""
        vectors = [b""] * len(requests)
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].token_ids))
        for indices in batches(order, [len(requests[index].token_ids) for index in order], _MOST_TOKENS, self.pads):
            outputs = self.reader.read([requests[index] for index in indices])
            for index, numbers in zip(indices, _on_host(outputs), strict=True):
                vectors[index] = numbers.numpy().tobytes()
        return vectors


def _on_host(outputs: Tensor | list[Tensor]) -> Sequence[Tensor]:
    """The numbers of a batch in float32, with one wait for the device."""
    if isinstance(outputs, Tensor):
        return outputs.float().cpu().unbind()
    flat = torch.cat([numbers.flatten() for numbers in outputs]).float().cpu()
    return flat.split([numbers.numel() for numbers in outputs])
