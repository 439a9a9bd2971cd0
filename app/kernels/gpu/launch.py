"""How kernels are started: one while the one before it ends, and compiled all together before the first is.

Between two kernels a GPU idles about a microsecond, which is as long as many of a single request's kernels take. With
CUDA's programmatic dependent launch, a kernel is started early and then waits. What no kernel writes, such as weights,
may be loaded before it waits; anything else only after. Kernels of many programs are better started alone: those of
an early start are spread unevenly over the multiprocessors (measured: attention of 32 requests takes a third longer).
"""

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
"""What is to be compiled, while kernels are not started but only that."""
_COMPILE_SECONDS = 60
"""After which a process that compiles is left to itself."""


@triton.jit
def wait_for_input(OVERLAPS: tl.constexpr, LETS_NEXT: tl.constexpr):
    """To be called once by every program, before it reads what other kernels write, and before it writes.

    LETS_NEXT: the next kernel may start now; else when this one ends.
    """
    if OVERLAPS:
        if LETS_NEXT:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def _can_overlap() -> bool:
    """GPUs of compute capability 9.0 can."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, overlaps: bool = False, **options: Any) -> None:
    """Start a kernel, which is compiled if it has to be.

    One that `overlaps` has a parameter OVERLAPS for `wait_for_input`; so has one that starts behind such a one.
    """
    if overlaps and _can_overlap():
        options["launch_pdl"] = options["OVERLAPS"] = True
    if _asked_for is None:
        kernel[grid](*args, **options)
    elif (signature := _signature(kernel, args, options)) not in _asked_for:
        _asked_for.add(signature)
        kernel.warmup(*args, grid=grid, **options)


def _signature(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Hashable:
    """Equal for starts that need the same compiled kernel, as those of all layers of a model do.

    Triton finds that out as well, but takes a millisecond for it until the kernel has been compiled.
    """
    described = tuple((a.dtype, a.data_ptr() % 16) if isinstance(a, torch.Tensor) else a for a in args)
    return (kernel, described, tuple(options.items()))


@contextmanager
def compiling(processes: int) -> Iterator[None]:
    """In here, kernels are not started: at the end all of them are compiled and loaded, several at a time."""
    global _asked_for
    _asked_for = set()
    try:
        compiler = _Compiler()
        with triton.AsyncCompileMode(compiler) as mode:
            yield
            compiler.run(processes)
            kernels = list(mode.future_kernels.values())
        # A kernel is loaded when it is asked for its launcher, which is a program in C that has to be compiled too.
        with ThreadPoolExecutor(processes) as executor:
            list(executor.map(lambda kernel: kernel.result().run, kernels))
    finally:
        _asked_for = None


class _Compiler(Executor):
    """Compiles what it was given all at once, in processes of their own: half of Triton's work is Python.

    They are forks, which need not import anything and know what is to be compiled. They leave the GPU alone, and what
    they compile in Triton's cache on disk.
    """

    def __init__(self) -> None:
        self._work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        """See `Executor`."""
        future: Future[Any] = Future()
        self._work.append((future, fn))
        return future

    def run(self, processes: int) -> None:
        """Do all of the work."""
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
        for future, fn in self._work:  # what a child could not compile is compiled here, and says why not
            try:
                future.set_result(fn())
            except Exception as error:
                future.set_exception(error)


def _call_all(work: list[Callable[[], Any]]) -> None:
    for fn in work:
        with suppress(Exception):
            fn()
