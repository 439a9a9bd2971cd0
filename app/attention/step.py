"""One step in the order of the forward pass, and how much room a forward pass has for steps."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass
class StepInput:
    """Decodes (one token each) come first, by length, then chunks of several tokens.

    A row with drafts is several decodes, one behind the other, of which each sees the K/V that the step writes for
    those before it. So its tokens are computed as they would be one after the other, and no shapes of steps are
    needed for drafts.
    """

    order: Ints
    """(requests,): index into the rows of the `SchedulerOutput` of each request; a row with drafts is several."""
    rows: Ints
    """(requests,)"""
    input_ids: Ints
    """(tokens,); meaningless where `input_is_sampled`."""
    input_is_sampled: NDArray[np.bool_]
    """(tokens,): whether a token is what its row sampled last, which only the device may know."""
    token_rows: Ints
    """(tokens,): row of each token."""
    positions: Ints
    """(tokens,)"""
    slot_mappings: list[Ints]
    """(tokens,) for each KV group: where each token's K/V is written, block id * block size + offset."""
    query_starts: Ints
    """(requests + 1,): offset of each request's first token among the step's tokens, and the number of tokens."""
    seq_lens: Ints
    """(requests,): tokens of each request whose K/V is in the cache once this step's is written."""
    num_decodes: int
    block_size: int
    snapshots: dict[int, tuple[int, int]] = field(default_factory=dict)
    """See `SchedulerOutput.snapshots`."""
    adapters: Ints | None = None
    """(tokens,): slot of each token's adapter, or NO_ADAPTER; None if no token has one."""
    ends: Ints | None = None
    """(tokens,): the position before which a token of an image sees all, where layers see ahead; 0 for other tokens,
    which see nothing behind themselves. None if there are no such tokens. An image is never cut by a chunk's end."""

    @property
    def num_tokens(self) -> int:
        return len(self.positions)

    @property
    def longest_decode(self) -> int:
        """Tokens that the longest decode sees."""
        return int(self.seq_lens[: self.num_decodes].max(initial=0))


class StepShape(NamedTuple):
    """How much a forward pass has room for. Graphs are recorded for a few shapes, and steps are padded to them."""

    tokens: int
    decodes: int
    chunks: int
    """Most requests with several tokens; 0 in a step that only decodes."""
    is_long: bool = False
    """Whether a decode may see more than the backend's `long_past` tokens."""
    is_adapted: bool = False
    """Whether tokens may have adapters. Those that have none wait for what is computed for the others."""
