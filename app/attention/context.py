"""What attention layers need to know of the step that is being run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from app.attention.backends.base import AttentionBackend


@dataclass
class AttentionMetadata:
    """The shape of one step. Requests that decode (one token each) come first, by length, then chunks of prompts."""

    slot_mapping: Tensor
    """(tokens,) int64: where each token's K/V is written; block id * block size + offset, or -1 for padding."""
    block_tables: Tensor
    """(requests, blocks) int64: each request's blocks, padded with 0."""
    query_starts: list[int]
    """Offset of each request's first token among the step's tokens, and the number of tokens."""
    seq_lens: list[int]
    """Tokens of each request whose K/V is in the cache once this step's is written."""
    num_decodes: int
    block_size: int
    derived: dict[Any, Any] = field(default_factory=dict)
    """What a backend has derived from the above, so that it does so once a step and not in every layer."""


@dataclass(frozen=True)
class ForwardContext:
    """The step that is being run, and who computes its attention."""

    backend: "AttentionBackend"
    metadata: AttentionMetadata


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
