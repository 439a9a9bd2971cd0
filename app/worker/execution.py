"""How a step's work reaches the device. There are three ways: step by step in a thread, so with recorded
decodes on a CPU (`app.worker.taped`), and as recorded CUDA graphs.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..attention.step import StepInput, StepShape
from ..core.step import ModelRunnerOutput, StepHandle
from .faults import named_faults

Work = Callable[[], None]


class StepMemory(NamedTuple):
    """Bytes; 0 where they are not known."""

    activations: int
    """Of the largest step."""
    graphs: int
    """Of recorded steps, on top of that."""


class Steps(Protocol):
    """What can be run before there are requests: see `app.worker.runner.ModelRunner`."""

    def pad(self, shape: StepShape, size: int) -> None:
        """Send the numbers of a step of nobody, with room for a shape and for `size` entries."""
        ...

    def body(self, shape: StepShape) -> Work:
        """The forward pass of the step that was sent."""
        ...

    def sampling_of(self, size: int, draws: bool) -> Work:
        """The sampling of the step that was sent."""
        ...

    def run_short_request(self) -> None:
        """A prompt and a decode, from beginning to end."""
        ...

    def run_largest(self) -> None:
        """A step full of prompts, and one in which all rows decode, from beginning to end."""
        ...


class Execution(Protocol):
    """Runs steps, one after the other."""

    largest: StepShape
    """Holds any step."""
    step_sizes: tuple[int, ...]
    """See `app.core.step.Limits`."""

    def shape(self, step: StepInput) -> StepShape:
        """What a step is to be padded to."""
        ...

    def size(self, num_entries: int) -> int:
        """The number of entries that sampling is to be padded to."""
        ...

    def submit(self, launch: Callable[[], StepHandle]) -> StepHandle:
        """Start a step. What goes wrong is raised by the handle."""
        ...

    def run(self, name: Hashable, work: Work) -> None:
        """Do a piece of work, or replay it: equal names promise work that differs only in the contents of buffers."""
        ...

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy that is complete when the step is."""
        ...

    def end(self) -> torch.cuda.Event | None:
        """An event that fires when all work launched so far is complete; None if it already is."""
        ...

    def measure_memory(self, steps: Steps) -> StepMemory:
        """What steps take beside weights and KV blocks. The attention layers need some cache already."""
        ...

    def prepare(self, steps: Steps) -> None:
        """Do all that is done once, so that no request pays for it. The KV blocks are there."""
        ...


class Eager:
    """Runs steps as they are in a thread, so that the engine plans the next one meanwhile: torch does not hold
    Python's lock while it computes.
    """

    step_sizes: tuple[int, ...] = ()

    def __init__(
        self, max_num_seqs: int, max_entries: int, max_num_batched_tokens: int, is_on_gpu: bool = False
    ) -> None:
        self._is_on_gpu = is_on_gpu
        self.largest = StepShape(max_num_batched_tokens, max_entries, max_num_seqs, is_adapted=True)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-runner")

    def shape(self, step: StepInput) -> StepShape:
        """See `Execution.shape`."""
        chunks, is_adapted = len(step.rows) - step.num_decodes, step.adapters is not None
        return StepShape(step.num_tokens, step.num_decodes, chunks, is_adapted=is_adapted)

    def size(self, num_entries: int) -> int:
        """See `Execution.size`."""
        return num_entries

    def submit(self, launch: Callable[[], StepHandle]) -> Future[ModelRunnerOutput]:
        """See `Execution.submit`."""
        return self._thread.submit(self._finish, launch)

    @staticmethod
    def _finish(launch: Callable[[], StepHandle]) -> ModelRunnerOutput:
        with named_faults():
            return launch().result()

    def run(self, name: Hashable, work: Work) -> None:  # noqa: ARG002
        """See `Execution.run`."""
        work()

    def to_host(self, tensor: Tensor) -> Tensor:
        """See `Execution.to_host`."""
        return tensor.to("cpu", copy=True)

    def end(self) -> torch.cuda.Event | None:
        """See `Execution.end`: the results are waited for in any case."""
        return None

    def measure_memory(self, steps: Steps) -> StepMemory:
        """See `Execution.measure_memory`."""
        if not self._is_on_gpu:
            return StepMemory(0, 0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps.run_largest()
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()
        return StepMemory(peak, 0)

    def prepare(self, steps: Steps) -> None:
        """See `Execution.prepare`."""
        steps.run_short_request()
