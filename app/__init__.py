"""Paceline: an LLM inference service with continuous batching.

`from paceline import LLM` gives the same service to a Python program, without a server (docs/python.md). What is named
here is imported when it is used, so that `import paceline` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .errors import ApiError, PacelineError, StartupError
    from .llm.llm import LLM, AsyncLLM, SamplingParams

__all__ = ["LLM", "ApiError", "AsyncLLM", "PacelineError", "SamplingParams", "StartupError", "__version__"]

_HOMES = {
    "LLM": ".llm.llm",
    "AsyncLLM": ".llm.llm",
    "SamplingParams": ".llm.llm",
    "ApiError": ".errors",
    "PacelineError": ".errors",
    "StartupError": ".errors",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
