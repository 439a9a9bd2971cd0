"""Steps as recorded CUDA graphs: nothing is waited for but the tokens, and each step is a replay.

A step is two pieces: the forward pass, from token ids to hidden states, in some shape that holds it; and sampling, from
hidden states to tokens, for some number of entries. What differs from step to step are numbers in a buffer. All pieces
are recorded before the first request comes; none is while requests wait.
"""

import logging
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..attention.step import StepInput, StepShape
from ..core.step import ModelRunnerOutput, StepHandle
from ..kernels.gpu.float8 import MOST_ROWS
from ..kernels.gpu.launch import compiling
from .execution import StepMemory, Steps, Work
from .faults import named_faults
from .graphs import Closures, CudaGraphs, Graphs, decode_sizes, fitting, token_sizes

log = logging.getLogger(__name__)

_BYTES_OF_A_GRAPH = 8 * 2**20
"""What a graph takes on top of the memory of what it records, at most."""


class Recorded:
    """See `Execution`. `submit` returns while the GPU works: so the engine plans a step during the one before."""

    def __init__(
        self,
        device: torch.device,
        *,
        max_num_seqs: int,
        max_entries: int,
        max_num_batched_tokens: int,
        long_past: int | None,
        has_adapters: bool,
    ) -> None:
        """`long_past`: the backend's, or None if no request can have more tokens than that.

        `has_adapters`: whether requests may have adapters. Steps without one are recorded apart, and cost no more.
        """
        self._device = device
        self._max_num_seqs = max_num_seqs
        self._max_entries = max_entries
        self._long_past = long_past
        self._has_adapters = has_adapters
        self._decode_sizes = decode_sizes(max_entries)  # drafts are decodes, too
        self._token_sizes = token_sizes(max_num_batched_tokens)
        self._entry_sizes = self._decode_sizes
        self._graphs: Graphs | None = None
        self.step_sizes = tuple(self._token_sizes)
        self.largest = self._mixed_shape(max_num_batched_tokens, long_past is not None, has_adapters)
        self._shapes = self._all_shapes()

    def _mixed_shape(self, tokens: int, is_long: bool, is_adapted: bool) -> StepShape:
        """For steps with chunks, of two tokens at least."""
        decodes = min(tokens, self._max_entries)
        return StepShape(tokens, decodes, min(tokens // 2, self._max_num_seqs), is_long, is_adapted)

    def _all_shapes(self) -> list[StepShape]:
        """All that are recorded, the largest first: smaller ones find room in their memory."""
        pasts = (False,) if self._long_past is None else (True, False)
        kinds = list(product(pasts, (True, False) if self._has_adapters else (False,)))
        mixed = [self._mixed_shape(size, *kind) for size in self._token_sizes[::-1] for kind in kinds]
        return mixed + [StepShape(size, size, 0, *kind) for size in self._decode_sizes[::-1] for kind in kinds]

    # ------------------------------------------------------------------ start-up

    def measure_memory(self, steps: Steps) -> StepMemory:
        """See `Execution.measure_memory`. Compiles the kernels first, as far as they are not in the cache."""
        if self._device.type != "cuda":
            return StepMemory(0, 0)
        self._compile(steps)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps.pad(self.largest, self._entry_sizes[-1])
        steps.body(self.largest)()
        steps.sampling_of(self._entry_sizes[-1], True)()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()
        num_graphs = len(self._shapes) + 2 * len(self._entry_sizes)
        return StepMemory(int(peak), num_graphs * _BYTES_OF_A_GRAPH)

    def _compile(self, steps: Steps) -> None:
        """Several kernels at a time."""
        smallest = self._shapes[-1]
        with compiling(processes=os.cpu_count() or 1):
            steps.pad(smallest, 1)
            steps.body(smallest)()  # hidden states, which sampling reads
            for size in self._entry_sizes:  # these kernels take longest, so they are the next
                steps.pad(self.largest, size)
                for draws in (False, True):
                    steps.sampling_of(size, draws)()
            for shape in self._shapes:
                if shape == self.largest or not shape.chunks or shape.tokens <= MOST_ROWS:
                    steps.pad(shape, 1)
                    steps.body(shape)()

    def prepare(self, steps: Steps) -> None:
        """Run every piece once, so that its kernels are compiled, and record it."""
        self._graphs = CudaGraphs() if self._device.type == "cuda" else Closures()
        before = self._free_bytes()
        for shape in self._shapes:
            steps.pad(shape, 1)
            self._record(shape, steps.body(shape))
        for size in self._entry_sizes[::-1]:
            steps.pad(self._shapes[-1], size)
            for draws in (False, True):
                self._record((size, draws), steps.sampling_of(size, draws))
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            log.info("recorded CUDA graphs, which take %.2f GiB", (before - self._free_bytes()) / 2**30)

    def _record(self, name: Hashable, work: Work) -> None:
        work()
        if self._graphs is None:
            return
        try:
            self._graphs.record(name, work)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            log.warning("this model's steps cannot be recorded as CUDA graphs, and run slower without: %s", error)
            self._graphs = None

    def _free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info()[0]) if self._device.type == "cuda" else 0

    # ------------------------------------------------------------------ a step

    def shape(self, step: StepInput) -> StepShape:
        """See `Execution.shape`."""
        count = step.num_tokens
        is_long = self._long_past is not None and step.longest_decode > self._long_past
        is_adapted = step.adapters is not None
        if count == step.num_decodes:
            size = fitting(self._decode_sizes, count)
            return StepShape(size, size, 0, is_long, is_adapted)
        return self._mixed_shape(fitting(self._token_sizes, count), is_long, is_adapted)

    def size(self, num_entries: int) -> int:
        """See `Execution.size`."""
        return fitting(self._entry_sizes, max(1, num_entries))

    def submit(self, launch: Callable[[], StepHandle]) -> StepHandle:
        """See `Execution.submit`."""
        try:
            with named_faults():
                return launch()
        except Exception as error:  # the handle raises it
            return _Failed(error)

    def run(self, name: Hashable, work: Work) -> None:
        """See `Execution.run`: replay what was recorded under the name."""
        if self._graphs is not None and name in self._graphs:
            self._graphs.replay(name)
        else:
            work()

    def to_host(self, tensor: Tensor) -> Tensor:
        """See `Execution.to_host`."""
        if self._device.type == "cpu":
            return tensor.clone()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def end(self) -> torch.cuda.Event | None:
        """See `Execution.end`."""
        if self._device.type == "cpu":
            return None
        event = torch.cuda.Event()
        event.record()
        return event


@dataclass
class _Failed:
    """A step that could not be launched."""

    error: Exception

    def done(self) -> bool:
        """See `StepHandle`."""
        return True

    def result(self) -> ModelRunnerOutput:
        """Raises the error."""
        raise self.error
