"""Work that the CPU does again without Python: recorded while it runs, and replayed.

A decode of a small model is some 400 kernels, and Python needs longer to start most of them than they run. A tape has
what a piece of work did: kernels with the addresses of their arguments, and torch's operations. Replaying it does the
same with what then lies at these addresses. Kernels that follow each other run in one go, in all threads
(`app.kernels.cpu.team`).
"""

import mmap
import sys
import weakref
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from . import team
from .kernel import Argument, of_thread

_ARENA_BYTES = 2**30
"""Of addresses; memory is taken only where something is written."""
_PROMISES_NOTHING = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Else a process with several arenas could not be forked: the system would have to promise all of them once more. The
flag has a name from Python 3.13 on."""
_SMALLEST_CHUNK = 64
"""Bytes: a line of the cache."""
_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class NotRecordableError(RuntimeError):
    """The work looks at numbers that it computes, so that it may do something else another time. Or it is too large."""


class Arena:
    """Memory for what pieces of work compute on their way. Only one runs at a time, so all tapes share it.

    A chunk is free again when nothing in Python holds it any more: what a tape does afterwards may write over it, as
    it did when the tape was recorded.
    """

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _PROMISES_NOTHING
        self._memory = np.frombuffer(mmap.mmap(-1, _ARENA_BYTES, flags=flags), np.uint8)
        self._start = self._memory.ctypes.data
        self._used = 0
        self._free: dict[int, list[int]] = {}
        """Where chunks begin, by their size."""

    def like(self, tensor: Tensor) -> Tensor:
        """Memory for a tensor of this shape and kind. Raises NotRecordableError if there is no room."""
        size = tensor.untyped_storage().nbytes()
        chunk = max(_SMALLEST_CHUNK, 1 << (size - 1).bit_length())
        free = self._free.setdefault(chunk, [])
        if not free:
            if self._used + chunk > _ARENA_BYTES:
                raise NotRecordableError("it needs too much memory")
            free.append(self._used)
            self._used += chunk
        begin = free.pop()
        view = self._memory[begin : begin + size]
        weakref.finalize(view, free.append, begin).atexit = False
        return torch.from_numpy(view).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def borrowed(self, tensor: Tensor) -> Tensor:
        """The same tensor, but for one of the arena without a hold on its chunk."""
        if not (tensor.is_cpu and not tensor.is_mkldnn and tensor.data_ptr() in self) or not tensor.numel():
            return tensor
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * step for size, step in steps)
        begin = tensor.data_ptr() - self._start
        memory = self._memory[begin : begin + (last + 1) * tensor.element_size()]
        return torch.from_numpy(memory).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def __contains__(self, address: int) -> bool:
        return self._start <= address < self._start + _ARENA_BYTES


class Tape:
    """What a piece of work did."""

    def __init__(self) -> None:
        self._pieces: list[Callable[[], None]] = []
        self._operations = array("q")
        self._num_pieces, self._last_pieces = 0, 0
        """Of these operations, and of the last of them."""
        self._held: list[Any] = []
        """What lies at the addresses of arguments, other than chunks of the arena, and the arguments themselves."""

    def add_kernel(self, code: int, words: "array[int]", tasks: int, pieces: int, owners: Sequence[Any]) -> None:
        """A kernel that has run, with its arguments."""
        before = self._num_pieces - (pieces == 1 == self._last_pieces)
        self._operations.extend((code, words.buffer_info()[0], tasks, pieces, before))
        self._num_pieces, self._last_pieces = before + pieces, pieces
        self._held += [words, *owners]

    def add_call(self, function: Callable[[], None]) -> None:
        """Anything else."""
        self._end_kernels()
        self._pieces.append(function)

    def _end_kernels(self) -> None:
        if not self._operations:
            return
        operations, self._operations = self._operations, array("q")
        self._num_pieces, self._last_pieces = 0, 0
        is_divided = any(pieces > 1 for pieces in operations[3 :: team.WORDS])
        count, threads = len(operations) // team.WORDS, torch.get_num_threads() if is_divided else 1
        self._pieces.append(lambda: team.run(operations.buffer_info()[0], count, threads))

    def finish(self) -> None:
        """Nothing more is added."""
        self._end_kernels()

    def replay(self) -> None:
        """Do it again."""
        for piece in self._pieces:
            piece()


class _Recorder(TorchDispatchMode):
    """Writes a tape of what runs in this thread."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.tape = Tape()
        self._arena = arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks this. Its compiler has no part here, and importing it so that it skips this takes a second."""
        return False

    def add(self, code: int, words: "array[int]", arguments: list[Argument], tasks: int, pieces: int) -> None:
        """See `app.kernels.cpu.kernel.Recorder`."""
        owners = [argument.owner for argument in arguments if argument.owner is not None]
        own = [owner for owner in owners if not (isinstance(owner, Tensor) and owner.data_ptr() in self._arena)]
        self.tape.add_kernel(code, words, tasks, pieces, own)

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _looks_at_numbers(function, args):
            raise NotRecordableError(f"{function} looks at what was computed")
        result = function(*args, **kwargs)
        if function in _ALLOCATIONS:
            return self._of_arena(result)
        held_args, held_kwargs = tree_map_only(Tensor, self._arena.borrowed, (args, kwargs))
        if function._schema.is_mutable:
            self.tape.add_call(lambda: function(*held_args, **held_kwargs))
            return result
        memory = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        new = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and _memory(tensor) not in memory]
        if not new:  # views, which are there already, and what is no tensor
            return result
        mine = tree_map_only(Tensor, self._of_arena, result)
        places = [self._arena.borrowed(tensor) for tensor in tree_leaves(mine)]
        self.tape.add_call(lambda: _refill(places, function(*held_args, **held_kwargs)))
        _refill(places, result)
        return mine

    def _of_arena(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cpu or tensor.is_mkldnn:
            raise NotRecordableError("it computes tensors of another kind")
        return self._arena.like(tensor) if tensor.untyped_storage().nbytes() else tensor


class _Watch(TorchFunctionMode):
    """Finds out what is read past the dispatcher."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotRecordableError(f"{function.__name__} looks at what was computed")
        return function(*args, **(kwargs or {}))


def _looks_at_numbers(function: Any, args: Any) -> bool:
    if function is torch.ops.aten.index.Tensor:  # only masks give results of another shape
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))


def _memory(tensor: Tensor) -> int:
    """What equals that of another tensor if the two share memory. Weights in oneDNN's form share none."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _refill(places: Sequence[Tensor], result: Any) -> None:
    for place, new in zip(places, tree_leaves(result), strict=True):
        place.copy_(new)


class Tapes:
    """Tapes by name."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._tapes: dict[Hashable, Tape] = {}

    def record(self, name: Hashable, work: Callable[[], None]) -> None:
        """Do a piece of work and record it. NotRecordableError if that cannot be: then it was not done to the end."""
        self._arena = self._arena or Arena()
        recorder = _Recorder(self._arena)
        of_thread.recorder = recorder
        try:
            with recorder, _Watch():
                work()
        finally:
            of_thread.recorder = None
        recorder.tape.finish()
        self._tapes[name] = recorder.tape

    def __contains__(self, name: Hashable) -> bool:
        return name in self._tapes

    def replay(self, name: Hashable) -> None:
        """Do a recorded piece of work; KeyError if there is none of the name."""
        self._tapes[name].replay()
