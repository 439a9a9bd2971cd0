"""What attention layers need to know of the step that is being run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .backends.base import AttentionBackend


@dataclass(frozen=True)
class ForwardContext:
    """The step that is being run, and who computes its attention."""

    backend: AttentionBackend[Any]
    metadata: Any
    """The step, as the backend wants it."""
    cross: "ForwardContext | None" = None
    """What its tokens see of encoders' outputs, in a model whose layers attend to these, too."""


_current: ContextVar[ForwardContext] = ContextVar("forward_context")


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make a step known to the attention layers that run inside this block, in this thread."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_context() -> ForwardContext:
    """The step that is being run; LookupError outside of one."""
    return _current.get()
