"""Triton's interpreter, made faster for tests."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.language.core import constexpr, tensor
from triton.language.core import tuple as triton_tuple
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def make_faster() -> None:
    """Leave out what takes the interpreter most of its time, and changes no result."""
    _patch_language_once()
    _look_up_types_once()
    _broadcast_only_what_differs()
    _share_shapes()
    # Each sum and product of integers is otherwise computed again in 64 bits, by five operations more. Compilers
    # check that only if they are asked to, and offsets of tests' small tensors are far from overflowing.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


def _patch_language_once() -> None:
    """Leave `triton.language` as the interpreter needs it, instead of changing it anew for each function's call.

    Else each launch and each call of a device function, such as `tl.sum`, looks through the whole language, which takes
    longer than most of what the functions do. What a module sees of it is changed when its first function runs.
    """
    change = interpreter._patch_lang
    seen: set[int] = set()

    def change_once(function: Callable[..., Any]) -> Any:
        if id(function.__globals__) not in seen:
            seen.add(id(function.__globals__))  # modules live as long as the process
            change(function)
        return interpreter._LangPatchScope()  # of no changes, so that none is undone

    interpreter._patch_lang = change_once


def _look_up_types_once() -> None:
    """Remember NumPy's type for each of Triton's, whose table is otherwise built anew for each operation."""
    look_up = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def look_up_once(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = look_up_once


def _broadcast_only_what_differs() -> None:
    """Leave operands of one shape as they are, each of which is otherwise broadcast to this shape."""
    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_others(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
        if left.type.is_block() and right.type.is_block() and left.type.shape == right.type.shape:
            return left, right
        both: tuple[Any, Any] = broadcast(self, left, right)
        return both

    TritonSemantic.broadcast_impl_value = broadcast_others


def _share_shapes() -> None:
    """Make a shape's description once, and not for each tensor."""
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def describe(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - the library's name
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in known:
            known[shape] = triton_tuple([constexpr(size) for size in shape]), constexpr(math.prod(shape))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[shape]

    tensor.__init__ = describe
