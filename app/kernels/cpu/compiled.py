"""Functions that Numba has compiled, as functions of C, and the files in which their code is kept.

Numba keeps compiled functions, too. But to read one it imports all that it could compile, and makes an object that
Python could call: with ten kernels that takes the better part of a second at every start.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import types
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime._nrt_python import c_helpers

_NAME = "entry"
_SIZE = 8
"""Bytes of a number in a file."""


class Entry(NamedTuple):
    """A function of C."""

    address: int
    holds: Any
    """What keeps the code in memory."""


class Source(NamedTuple):
    """What is compiled: a function that returns nothing."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    """Numba's types of them."""
    fastmath: set[str]
    """What LLVM may do to floating-point numbers."""


Wrap = Callable[[ir.Module, str, ir.Function], None]
"""Adds a function of a name to a module, which calls a compiled function as Numba's functions are called."""


class _Folder:
    path: Path | None = None


def keep_in(folder: Path) -> None:
    """Keep compiled code in a folder from now on, which whoever can write to it is trusted with."""
    _Folder.path = folder


def entry(name: str, source: Source, wrap: Wrap) -> Entry:
    """The function that `wrap` makes, from its file, or compiled. The name stands for all that it is made of."""
    with global_compiler_lock:
        target = cpu_target.target_context
        _add_symbols()
        codegen = target.codegen()
        versions = numba.__version__, llvmlite.__version__, codegen.magic_tuple()  # the last names the processor
        key = hashlib.sha256(repr((name, versions)).encode()).hexdigest()[:24]
        symbol = f"{_NAME}_{key}"
        library = _read(codegen, key)
        if library is None:
            # Numba makes the name in machine code of this one, of the types of arguments, and of a number that begins
            # anew in each process. Code of several processes comes together: so it tells what is compiled in, too.
            source.function.__qualname__ = f"of_{symbol}"
            library = _compile(codegen, symbol, source, wrap)
            _write(key, library)
        return Entry(library.get_pointer_to_function(symbol), library)


@cache
def _add_symbols() -> None:
    """Make known what compiled functions call to get memory. Numba itself would also compile what it links to them."""
    for name, address in c_helpers.items():
        add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def _compile(codegen: Any, symbol: str, source: Source, wrap: Wrap) -> Any:
    """One library of a function and the one that calls it, of which machine code is made once.

    Making machine code changes a module in place: addresses that are whole numbers become offsets from null. LLVM takes
    reading and writing there for impossible if it optimizes the module again, with what calls it.
    """
    library = codegen.create_library(symbol)
    library.enable_object_caching()
    flags: Any = Flags()  # its attributes are made when it is imported
    cpu_target.options.parse_as_flags(flags, {"nopython": True, "error_model": "numpy", "fastmath": source.fastmath})
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    typing, target = cpu_target.typing_context, cpu_target.target_context
    arguments = (typing, target, source.function, source.arguments, types.none)
    description = compile_extra(*arguments, flags, locals={}, library=library).fndesc
    module = library.create_ir_module(symbol)
    kind = target.call_conv.get_function_type(description.restype, description.argtypes)
    wrap(module, symbol, ir.Function(module, kind, description.llvm_func_name))
    library.add_ir_module(module)
    library.finalize()
    return library


def _read(codegen: Any, key: str) -> Any:
    try:
        data = (_Folder.path / key).read_bytes() if _Folder.path else b""
    except OSError:
        data = b""
    size = int.from_bytes(data[:_SIZE], "little")
    code, bitcode = data[_SIZE : _SIZE + size], data[_SIZE + size :]
    try:
        return codegen.unserialize_library((f"{_NAME}_{key}", "object", (code, bitcode))) if bitcode else None
    except Exception:  # a file that is not whole: LLVM says that in many ways
        return None


def _write(key: str, library: Any) -> None:
    """As a whole or not at all, since another process may read it now: the code's size, the code, and its bitcode."""
    if _Folder.path is None or not os.access(_Folder.path, os.W_OK):
        return
    _, _, (code, bitcode) = library.serialize_using_object_code()
    with suppress(OSError):  # no space is left: then it is compiled again
        number, own = tempfile.mkstemp(dir=_Folder.path)  # containers that share the folder have equal process ids
        try:
            with os.fdopen(number, "wb") as file:
                file.write(len(code).to_bytes(_SIZE, "little") + code + bitcode)
            Path(own).replace(_Folder.path / key)
        except OSError:
            Path(own).unlink()
