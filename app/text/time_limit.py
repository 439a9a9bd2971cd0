"""A limit of time on templates, which are programs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_CODE_OF_TEMPLATES = "<template>"
"""What Jinja says is the file of a template's Python code."""


@contextmanager
def template_time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a template's code that runs longer than this, within this thread.

    By Python's trace function, which looks at the clock at each line of the template; a single operation on a huge
    text takes its time all the same.
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
