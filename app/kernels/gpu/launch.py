"""Starting kernels, each while the previous one ends, and compiling all of them before the first one starts.

Between two kernels a GPU idles for about a microsecond, which is as long as many kernels of a single request take. With
CUDA's programmatic dependent launch, a kernel is started early and then waits for the previous one. Before it waits, it
may only load what no kernel writes, such as weights. Kernels with many programs should not be started early, because
then their programs are spread unevenly over the multiprocessors (measured: attention of 32 requests takes a third
longer).
"""

import gc
import multiprocessing
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

_asked_for: set[Hashable] | None = None
"""Signatures of the kernels that were asked for within `compiling`; None outside of it, where kernels are started."""
OVERLAPPING_ROWS = 64
"""With more rows, kernels have so many programs that few of them would be early."""
_COMPILE_SECONDS = 60
"""How long to wait for a process that compiles."""


@triton.jit
def wait_for_input(OVERLAPS: tl.constexpr, LETS_NEXT: tl.constexpr):
    """Every program calls this once, before it reads what other kernels write, and before it writes.

    With LETS_NEXT the next kernel may start now, and otherwise when this one ends.
    """
    if OVERLAPS:
        if LETS_NEXT:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def _can_overlap() -> bool:
    """Whether the GPU can start kernels early, which takes compute capability 9.0."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, overlaps: bool = False, **options: Any) -> None:
    """Start a kernel, and compile it at its first start.

    A kernel that `overlaps` has a parameter OVERLAPS for `wait_for_input`; so has any that follows such a kernel.
    """
    if overlaps and _can_overlap():
        options["launch_pdl"] = options["OVERLAPS"] = True
    if _asked_for is None:
        kernel[grid](*args, **options)
    elif (signature := _signature(kernel, args, options)) not in _asked_for:
        _asked_for.add(signature)
        kernel.warmup(*args, grid=grid, **options)


def _signature(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Hashable:
    """A key that is equal for starts of the same compiled kernel, such as those of all layers of a model.

    Triton has such a key too, but takes a millisecond to find it before the kernel is compiled.
    """
    described = tuple((a.dtype, a.data_ptr() % 16) if isinstance(a, torch.Tensor) else a for a in args)
    return (kernel, described, tuple(options.items()))


@contextmanager
def compiling(processes: int) -> Iterator[None]:
    """Within this context kernels are collected instead of started; at its end they are compiled, several at a time."""
    global _asked_for
    _asked_for = set()
    try:
        compiler = _Compiler()
        with triton.AsyncCompileMode(compiler) as mode:
            yield
            compiler.run(processes)
            kernels = list(mode.future_kernels.values())
        # Asking a kernel for its launcher loads it; the launcher is a C program that has to be compiled, too.
        with ThreadPoolExecutor(processes) as executor:
            list(executor.map(lambda kernel: kernel.result().run, kernels))
    finally:
        _asked_for = None


class _Compiler(Executor):
    """Compiles everything at once in several processes, because half of Triton's work is Python.

    They are forks, which know what to compile and need not import anything. They do not use the GPU, and leave the
    compiled kernels in Triton's cache on disk.
    """

    def __init__(self) -> None:
        self._work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        """See `Executor`."""
        future: Future[Any] = Future()
        self._work.append((future, fn))
        return future

    def run(self, processes: int) -> None:
        """Compile everything that was submitted."""
        compile_all = [fn for _, fn in self._work]
        fork = multiprocessing.get_context("fork")
        children = [
            fork.Process(target=_call_all, args=(compile_all[index::processes],), daemon=True)
            for index in range(min(processes, len(compile_all)))
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(_COMPILE_SECONDS)
        for future, fn in self._work:  # from the cache; what a child could not compile raises its error here
            try:
                future.set_result(fn())
            except Exception as error:
                future.set_exception(error)


def _call_all(work: list[Callable[[], Any]]) -> None:
    gc.disable()  # a fork must not free what its parent has on the GPU
    for fn in work:
        with suppress(Exception):
            fn()
