"""Triton's interpreter, made faster for tests."""

from collections.abc import Callable
from typing import Any

from triton.runtime import interpreter


def patch_language_once() -> None:
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
