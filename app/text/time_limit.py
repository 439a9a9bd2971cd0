"""A time limit for templates, which are programs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_CODE_OF_TEMPLATES = "<template>"
"""The file name that Jinja gives to a template's Python code."""


@contextmanager
def template_time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a template's code that runs longer than this in this thread.

    Python's trace function reads the clock at each line of the template. A single operation on a huge text can
    therefore exceed the limit.
    """
    deadline = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG001 - Python's
        if time.monotonic() > deadline:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return trace if frame.f_code.co_filename == _CODE_OF_TEMPLATES else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
