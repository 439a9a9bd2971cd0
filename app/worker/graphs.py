"""Work that the GPU does without being told each kernel: recorded once for some sizes, and replayed.

A forward pass is some hundred kernels, and Python needs longer to start one than the GPU to run it.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Protocol

import torch


class Graphs(Protocol):
    """Recorded work by name."""

    def record(self, name: Hashable, work: Callable[[], None]) -> None:
        """Record what `work`, which has been run before, asks the device to do. RuntimeError if it cannot be."""
        ...

    def __contains__(self, name: Hashable) -> bool: ...

    def replay(self, name: Hashable) -> None:
        """Run a recorded piece; KeyError if there is none of the name."""
        ...


class Closures:
    """Stands for graphs on a CPU, for tests: the work itself is kept, and done again with what it was recorded with."""

    def __init__(self) -> None:
        self._work: dict[Hashable, Callable[[], None]] = {}

    def record(self, name: Hashable, work: Callable[[], None]) -> None:
        """See `Graphs.record`."""
        self._work[name] = work

    def __contains__(self, name: Hashable) -> bool:
        return name in self._work

    def replay(self, name: Hashable) -> None:
        """See `Graphs.replay`."""
        self._work[name]()


class CudaGraphs:
    """See `Graphs`. All of them share one pool of memory, since only one piece runs at a time."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, name: Hashable, work: Callable[[], None]) -> None:
        """See `Graphs.record`. Kernels are compiled when the work is run for the first time.

        Larger pieces should be recorded before smaller ones, which find room in their memory. RuntimeError if the work
        waits for the GPU, or cannot be recorded for some other reason.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        self._graphs[name] = graph

    def __contains__(self, name: Hashable) -> bool:
        return name in self._graphs

    def replay(self, name: Hashable) -> None:
        """See `Graphs.replay`."""
        self._graphs[name].replay()


def decode_sizes(most: int) -> list[int]:
    """Numbers of decoding requests to record graphs for. Little is wasted: weights are read once in any case."""
    sizes = [1, 2, 4, 8, *range(16, most, 16)]
    return [*(size for size in sizes if size < most), most]


def token_sizes(most: int) -> list[int]:
    """Numbers of tokens to record graphs for, for steps with prompts. At most a ninth of a large step is wasted."""
    sizes, size, step = [], 16, 16
    while size < most:
        sizes.append(size)
        if size >= 16 * step:
            step *= 2
        size += step
    return [*sizes, most]


def fitting(sizes: list[int], count: int) -> int:
    """The smallest size that holds `count`."""
    return next(size for size in sizes if size >= count)
