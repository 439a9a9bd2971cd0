"""A request as the engine sees it: token ids in, token ids out."""

import enum
from dataclasses import dataclass, field

import msgspec

from .media import Media, Placed
from .sampling import SamplingParams

DEFAULT_TENANT = "default"
"""Whose requests are if nobody has keys."""


class RequestStatus(enum.Enum):
    """Where a request is in its life."""

    WAITING = enum.auto()
    """Never run yet: holds no blocks and no row."""
    RUNNING = enum.auto()
    """Has a row in the worker's batch and blocks in the KV cache."""
    PREEMPTED = enum.auto()
    """Ran, and gave its blocks back for want of memory; waits to be computed again."""
    FINISHED = enum.auto()


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """A stop token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the end of the model's context."""
    ABORT = "abort"
    """Its client went away."""
    ERROR = "error"
    """Its own work failed, or the engine did."""
    TIMEOUT = "timeout"
    """Its deadline came."""


NO_ADAPTER = -1


class Extras(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request brings along beside token ids, for the models that read it."""

    type_ids: list[int] = []
    """Parallel to the prompt: which text of a pair each token is of, 0 or 1. Empty if all are of one."""
    num_ignored: int = 0
    """Tokens at the front that an embedding is made without, because they are of the model's own prompt."""
    media: Media | None = None
    """What a predictor reads, if it is no text."""
    adapter: int = NO_ADAPTER
    """The worker's slot with the request's adapter."""
    source: Media | None = None
    """What the encoder of an encoder-decoder reads."""
    placed: list[Placed] = []
    """What stands in the place of some of the prompt's tokens, in order."""


NO_EXTRAS = Extras()


@dataclass(slots=True, eq=False)
class Request:
    """One generation in progress. Two requests are never equal: identity is what counts."""

    request_id: str
    token_ids: list[int]
    """The prompt, and then every token generated so far."""
    num_prompt_tokens: int
    sampling: SamplingParams
    arrived_at: float
    """Seconds, `time.monotonic()` (one clock for all processes of a machine)."""
    priority: int = 0
    """Lower runs first."""
    cache_salt: str = ""
    """Prefix blocks are shared only between requests of equal salt."""
    cache_retention: float = 0.0
    """Seconds for which its blocks had better stay in the cache behind its end."""
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    """The tenant's share of the service, relative to the weights of other tenants."""
    extras: Extras = NO_EXTRAS
    max_drafts: int | None = None
    """Most drafts in a step; None leaves it to the engine."""
    is_suspect: bool = False
    """Engines died while they ran it, so it runs alone until it has had a token."""

    status: RequestStatus = RequestStatus.WAITING
    row: int = -1
    """Its place in the worker's batch arrays while RUNNING."""
    block_tables: list[list[int]] = field(default_factory=list)
    """Of each KV group: the blocks that hold its tokens, in order; all of the same length."""
    first_blocks: list[int] = field(default_factory=list)
    """Of each KV group: how many blocks at the beginning of its table are not needed any more, and were given back."""
    num_slots: int = 0
    """Tokens that its block tables have room for."""
    cross_blocks: list[int] = field(default_factory=list)
    """What its cross-attention reads, in order; see `app.engine.cross_blocks`."""
    cross_hashes: list[bytes] = field(default_factory=list)
    """Of these blocks, once they have been needed."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of its full blocks of tokens, as far as they have been needed."""
    max_num_tokens: int = 0
    """Most tokens that it may come to, prompt and output; the scheduler sets it."""
    num_computed_tokens: int = 0
    """Tokens whose K/V is in the cache, those of the step in flight included, but for its drafts."""
    num_in_flight: int = 0
    """Tokens that steps in flight are sure to give: they have a position, but no known id yet."""
    num_drafts: int = 0
    """Guesses in the step in flight: how many of them are right, its result will tell."""
    of_proposer: object = None
    """What the proposer of drafts remembers of its tokens."""
    num_admitted_tokens: int = 0
    """Tokens that it had when it was given its row."""
    num_registered_blocks: int = 0
    """Full blocks that the prefix cache knows already."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache when it was first scheduled."""
    num_prompt_logprobs: int = 0
    """Prompt positions whose logprobs were reported: a preempted prompt is computed twice, but reported once."""
    scheduled_at: float = 0.0
    first_token_at: float = 0.0

    @property
    def num_source_tokens(self) -> int:
        """Places of its encoder's input; 0 if there is none."""
        return 0 if self.extras.source is None else self.extras.source.num_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Tokens by which a running request is behind; 0 if the step in flight may be its last."""
        num_tokens = len(self.token_ids) + self.num_in_flight
        if self.num_in_flight and (self.num_drafts or num_tokens >= self.max_num_tokens):
            return 0
        return num_tokens - self.num_computed_tokens

    @property
    def has_progressed(self) -> bool:
        """Whether a running request has got a token since it was given its row, or one is in flight."""
        return len(self.token_ids) + self.num_in_flight > self.num_admitted_tokens

    @property
    def num_blocks(self) -> int:
        """The length of its block tables, which is the same in all KV groups."""
        return len(self.block_tables[0]) if self.block_tables else 0

    def num_held_blocks(self, group: int) -> int:
        """Blocks that it holds in a KV group: those of its table that were not given back."""
        return self.num_blocks - self.first_blocks[group] if self.block_tables else 0

    @property
    def is_waiting(self) -> bool:
        """Whether it is to be given a row, for the first time or again."""
        return self.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)

    @property
    def sort_key(self) -> tuple[int, float]:
        """Among a tenant's requests, smaller is served earlier and preempted later: priority, then arrival."""
        return (self.priority, self.arrived_at)
