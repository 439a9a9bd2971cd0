"""Triton's interpreter, made faster for tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


def make_faster() -> None:
    """Leave out what takes the interpreter most of its time, and changes no result."""
    _patch_language_once()
    _look_up_types_once()
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
