"""The threads that run kernels: those of torch's OpenMP library, which do a list of operations from end to end.

An operation is a kernel with its arguments and a number of tasks, cut into pieces. Each thread takes one piece after
the other, as soon as all earlier operations are done. That takes less than a microsecond, where waking threads for each
operation would take ten. A thread that the system has put aside for another program holds up nobody, unless it is in
the middle of a piece.

The threads are torch's own, since with a second pool the two would compete for the same cores.
"""

import ctypes
import logging
import platform
from array import array
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import compiled
from .compiled import Entry, Source
from .emitter import I32, I64

log = logging.getLogger(__name__)

WORDS = 5
"""Numbers of an operation, int64: the addresses of its code and of its arguments, its tasks, its pieces, and how many
pieces there are before it. Neighbours of one piece each count as one, which one thread does: they tell the same number.
"""
_TAKEN, _DONE, _FAILED, _PLAN = 8, 16, 24, 32
"""Where in a plan the numbers lie that threads write to, in lines of the cache of their own; and its size."""
_UNUSED = [0] * (_PLAN - 4)
_SPINS = 64
"""How often a thread looks for work before it lets other programs have its core for a moment."""


def entry(name: str, source: Source) -> Entry:
    """A way into a function that takes `begin`, `end` and arguments, which reads these from words: it takes begin, end,
    and the words' address, and gives 0 if all went well.

    An array is 5 words, then its shape and its strides: two of Numba's own, the number of numbers, their size, and the
    address. Other arguments are one word each. The name stands for all that the function is made of.
    """
    return compiled.entry(name, source, _read_words)


def _read_words(module: ir.Module, name: str, function: ir.Function) -> None:
    """See `app.kernels.cpu.compiled.Wrap`."""
    kind = function.function_type
    outer = ir.Function(module, ir.FunctionType(I32, [I64, I64, I64.as_pointer()]), name)
    builder = ir.IRBuilder(outer.append_basic_block())
    begin, end, words = outer.args
    results = [builder.alloca(pointer.pointee) for pointer in kind.args[:2]]
    arguments = [
        _read(builder, builder.gep(words, [ir.Constant(I64, at)]), wanted) for at, wanted in enumerate(kind.args[4:])
    ]
    builder.ret(builder.call(function, [*results, begin, end, *arguments]))


def _read(builder: ir.IRBuilder, place: Any, kind: ir.Type) -> Any:
    if isinstance(kind, ir.PointerType):
        return builder.inttoptr(builder.load(place), kind)
    return builder.load(builder.bitcast(place, kind.as_pointer()))


def run(operations: int, count: int, threads: int) -> None:
    """Run operations, which lie at an address, with so many threads."""
    code, plan = _code(), array("q", [operations, count, 0, 0, *_UNUSED])
    parallel = _parallel() if threads > 1 else None
    if parallel is None:
        code.call(plan.buffer_info()[0])
    else:
        parallel(code.entry.address, plan.buffer_info()[0], threads, 0)
    if plan[_FAILED]:
        raise MemoryError("a kernel failed on the CPU, for want of memory")


@cache
def _parallel() -> Any:
    """GNU OpenMP's function, which other OpenMP libraries have as well, of the library that torch is linked with.

    It runs a function with an argument in some number of threads. None if torch has another kind of threads.
    """
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError) as error:
        log.warning("the CPU's kernels run in one thread: torch's threads are not found (%s)", error)
        return None
    parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    return parallel


class _Code(NamedTuple):
    entry: Entry
    call: Any
    """From Python, for one thread."""


@cache
def _code() -> _Code:
    """`_take_part` as a function of C."""
    made = compiled.entry("_take_part", Source(_take_part, (_WORDS_AT,), set()), _take_plan)
    return _Code(made, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address))


def _take_plan(module: ir.Module, name: str, function: ir.Function) -> None:
    """See `app.kernels.cpu.compiled.Wrap`."""
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), name)
    builder = ir.IRBuilder(outer.append_basic_block())
    results = [builder.alloca(pointer.pointee) for pointer in function.function_type.args[:2]]
    builder.call(function, [*results, *outer.args])
    builder.ret_void()


def _take_part(plan):  # type: ignore[no-untyped-def]
    """What each thread runs. A plan begins with the address of operations, and how many there are."""
    at, spins = 0, 0
    while True:
        ticket: int = _look(plan, _TAKEN, spins == _SPINS)  # type: ignore[call-arg]
        spins = 0 if spins == _SPINS else spins + 1
        operation = _words_at(plan[0] + 8 * WORDS * at)
        while at < plan[1] and operation[4] + operation[3] <= ticket:
            at += 1
            operation = _words_at(plan[0] + 8 * WORDS * at)
        if at == plan[1]:
            return
        first = operation[4]
        if _look(plan, _DONE, False) < first or not _take(plan, _TAKEN, ticket):
            continue
        spins, begins = 0, at
        while at < plan[1] and operation[4] == first:
            tasks, pieces, piece = operation[2], operation[3], ticket - first
            if _call(operation[0], piece * tasks // pieces, (piece + 1) * tasks // pieces, operation[1]) != 0:
                plan[_FAILED] = 1
            at += 1
            operation = _words_at(plan[0] + 8 * WORDS * at)
        at = begins
        _add(plan, _DONE)


_WORDS_AT = types.CPointer(types.int64)


@intrinsic
def _words_at(_context, _address):  # type: ignore[no-untyped-def]
    """The words at an address."""

    def generate(_target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], I64.as_pointer())

    return _WORDS_AT(types.int64), generate


@intrinsic
def _call(_context, _code, _begin, _end, _words):  # type: ignore[no-untyped-def]
    """Call an `Entry`, given its address: 0 if all went well."""

    def generate(_target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(I32, [I64, I64, I64.as_pointer()])
        code = builder.inttoptr(arguments[0], kind.as_pointer())
        words = builder.inttoptr(arguments[3], I64.as_pointer())
        return builder.sext(builder.call(code, [arguments[1], arguments[2], words]), I64)

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def _take(_context, _words, _at, _ticket):  # type: ignore[no-untyped-def]
    """Add one to a word that all threads see, if it is still the ticket. Returns whether it was."""

    def generate(_target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        words, at, ticket = arguments
        more = builder.add(ticket, ir.Constant(I64, 1))
        return builder.extract_value(builder.cmpxchg(builder.gep(words, [at]), ticket, more, "seq_cst", "seq_cst"), 1)

    return types.boolean(_WORDS_AT, types.int64, types.int64), generate


@intrinsic
def _add(_context, _words, _at):  # type: ignore[no-untyped-def]
    """Add one to a word that all threads see. Who sees it sees all that was written before."""

    def generate(_target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), ir.Constant(I64, 1), "seq_cst")
        return _target.get_dummy_value()

    return types.void(_WORDS_AT, types.int64), generate


@intrinsic
def _look(_context, _words, _at, _rests):  # type: ignore[no-untyped-def]
    """Wait for a moment, and read a word that other threads add to. Who rests lets other programs run first."""

    def generate(_target, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        words, at, rests = arguments
        if platform.machine() in ("x86_64", "AMD64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        with builder.if_then(rests, likely=False):
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])
        return builder.load_atomic(builder.gep(words, [at]), "seq_cst", 8)

    return types.int64(_WORDS_AT, types.int64, types.boolean), generate
