"""How the CPU's kernels are compiled, and how they get their arguments.

A kernel is a function of tasks, from `begin` to before `end`, and of arrays and numbers. Numba compiles it at its first
call, for the kinds of its arguments, and it runs without Python's lock in torch's threads (`app.kernels.cpu.team`).
"""

import hashlib
import logging
import os
import struct
import threading
from array import array
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from . import compiled, team
from .compiled import Entry, Source
from .numerics import FAST

log = logging.getLogger(__name__)

_PIECES_OF_A_THREAD = 2
"""So that a thread that is held up leaves work to the others."""


_SOURCES = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]
"""Names the code of all kernels, as it is when it is imported."""


def keep_compiled(folder: Path) -> None:
    """Keep compiled kernels in a folder, if it can be written to, because compiling takes seconds.

    It is called before the first kernel runs. The files' names depend on the processor, so machines can share the
    folder. They do not depend on kernels' sources: each state of all of these has a folder of its own.
    """
    folder = folder / _SOURCES
    if not folder.is_dir():
        log.info("compiling the CPU's kernels, once: this takes some ten seconds")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return
    # Its files are run. Where systems know no owners, there is nothing to compare.
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        log.warning("compiled kernels are not kept in %s, since others can write there", folder)
        return
    compiled.keep_in(folder)


class Argument(NamedTuple):
    """An argument as a kernel takes it; see `app.kernels.cpu.team.entry`."""

    kind: Hashable
    words: list[int]
    owner: Any = None
    """Keeps an array's memory."""


class Recorder(Protocol):
    """Takes down what kernels a thread runs."""

    def add(self, code: int, words: "array[int]", arguments: list[Argument], tasks: int, pieces: int) -> None:
        """A kernel that has just run, with the words of its arguments."""
        ...


class _OfThread(threading.local):
    recorder: Recorder | None = None


of_thread = _OfThread()


class Kernel:
    """A kernel. Its source gets `begin`, `end`, and the arguments of a call."""

    def __init__(self, source: Callable[..., None]) -> None:
        self._source = source
        outer = [cell.cell_contents for cell in source.__closure__ or ()]  # numbers that are compiled in
        self._name = f"{source.__module__}.{source.__qualname__} {outer}"
        self._entries: dict[tuple[Hashable, ...], Entry] = {}

    def __call__(self, tasks: int, is_large: bool, *arguments: Any) -> None:
        """Do all tasks, in one thread unless they are large. Arguments are tensors, arrays, `constant`s and numbers."""
        described = [argument if type(argument) is Argument else describe(argument) for argument in arguments]
        kinds = tuple([argument.kind for argument in described])
        code = self._entries.get(kinds) or self._compile(kinds)
        threads = torch.get_num_threads() if is_large else 1
        pieces = min(tasks, _PIECES_OF_A_THREAD * threads) if threads > 1 else 1
        words = array("q", [word for argument in described for word in argument.words])
        operation = array("q", [code.address, words.buffer_info()[0], tasks, pieces, 0])
        team.run(operation.buffer_info()[0], 1, min(threads, pieces))
        if of_thread.recorder is not None:
            of_thread.recorder.add(code.address, words, described, tasks, pieces)

    def _compile(self, kinds: tuple[Hashable, ...]) -> Entry:
        arguments = types.int64, types.int64, *map(_numba_type, kinds)
        source = Source(self._source, arguments, FAST)
        self._entries[kinds] = team.entry(f"{self._name} {kinds}", source)
        return self._entries[kinds]


def kernel(source: Callable[..., None]) -> Kernel:
    """A kernel made of a function of `begin`, `end` and its arguments."""
    return Kernel(source)


_NUMBERS: dict[Any, Any] = {
    torch.float32: types.float32,
    torch.bfloat16: types.uint16,  # Numba has neither; see `app.kernels.cpu.numerics`
    torch.float16: types.uint16,
    torch.int8: types.int8,
    torch.uint8: types.uint8,
    torch.int32: types.int32,
    torch.int64: types.int64,
}


def _numba_type(kind: Hashable) -> Any:
    if not isinstance(kind, tuple):
        return kind
    numbers, dimensions, layout = kind
    of_numpy = numbers if numbers in _NUMBERS else None
    return types.Array(_NUMBERS[of_numpy] if of_numpy else numba.from_dtype(numbers), dimensions, layout)


def describe(value: Any) -> Argument:
    """A tensor, an array of NumPy's, or a number; a float is one of 32 bits."""
    if isinstance(value, Tensor):
        size, shape = value.element_size(), value.shape
        words = [0, 0, value.numel(), size, value.data_ptr(), *shape, *[size * step for step in value.stride()]]
        return Argument((value.dtype, len(shape), "C" if value.is_contiguous() else "A"), words, value)
    if isinstance(value, np.ndarray):
        layout = "C" if value.flags.c_contiguous else "A"
        words = [0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
        return Argument((value.dtype, value.ndim, layout), words, value)
    if isinstance(value, bool):
        return Argument(types.boolean, [int(value)])
    if isinstance(value, float):
        return Argument(types.float32, [struct.unpack("<i", struct.pack("<f", value))[0]])
    return Argument(types.int64, [value])


@lru_cache(maxsize=4096)
def constant(tensor: Tensor) -> Argument:
    """A tensor that lives as long as the model, such as a weight or a cache, described once."""
    return describe(tensor.detach())  # it keeps this memory, even if the tensor is given another
