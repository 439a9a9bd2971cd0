"""The contract between scheduler and worker: what one forward pass is to do, and what came of it.

A running request has a *row*, its index into the worker's batch arrays. The worker learns of a request once,
in full (`NewRequest`), when it is given a row; after that only of changes: how many tokens to compute now, and
blocks added. A row is free for the next request as soon as the scheduler stops naming it.

KV memory is a list of groups (`KVGroup`), and a request has a block table in each of them. The block at an index of any
of its tables holds the tokens of the same positions, so all of its tables have the same length.

A row may carry *drafts*: guesses of the tokens that follow its last one. The worker computes them in the same pass,
and keeps those that equal what it samples at their positions: so a step may give a row several tokens, and the text
is the one that it would have been without drafts. The engine proposes them, or leaves that to a draft model in the
worker. A step with drafts has no prompts, and few tokens: MAX_WITH_DRAFTS.

Steps are executed in the order in which they were submitted.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import msgspec

from .request import NO_EXTRAS, Extras
from .sampling import Logprobs, SamplingParams


class NewRequest(msgspec.Struct, kw_only=True):
    """A request that was just given a row: for the first time, or again after a preemption."""

    row: int
    token_ids: list[int]
    """All tokens known so far: the prompt and, after a preemption, what was generated before it."""
    num_prompt_tokens: int
    num_computed_tokens: int = 0
    """Tokens already in the KV cache, through the prefix cache."""
    block_ids: list[list[int]]
    """Its block table in each KV group; 0 where a group does not keep the block any more."""
    cross_blocks: list[int] = []
    """Of an encoder-decoder: the blocks of what its cross-attention reads."""
    is_encoded: bool = False
    """Whether these hold its encoder's output already, or will before this request's step reads them."""
    snapshot: int | None = None
    """Where the state is that it starts with behind its computed tokens, if rows keep states and there are any."""
    num_prompt_logprobs: int = 0
    """Prompt logprobs that were reported before a preemption, and are not wanted again."""
    sampling: SamplingParams
    extras: Extras = NO_EXTRAS


class BlockCopies(msgspec.Struct):
    """What a step begins with in one KV group: first all blocks go out, then others come in."""

    out: list[tuple[int, int]] = []
    """(block, place in host memory): blocks that steps from this one on overwrite. Each place occurs once."""
    into: list[tuple[int, int]] = []
    """(place in host memory, block). A place may be one that was just written."""


class SchedulerOutput(msgspec.Struct):
    """One step. `rows`, `request_ids` and `num_scheduled_tokens` are parallel; each row occurs once."""

    new_requests: list[NewRequest] = []
    new_blocks: list[tuple[int, list[list[int]]]] = []
    """(row, block ids to append to its block table in each KV group), for rows that were known before."""
    rows: list[int] = []
    request_ids: list[str] = []
    num_scheduled_tokens: list[int] = []
    """Tokens to compute for each row: 1 for a decode, with its drafts if it has any; more for a chunk of a prompt.

    A row whose tokens are all computed after this step samples its next token. That token need not come back
    to the worker: the next position's input is what the row sampled last."""
    drafts: dict[int, list[int]] = {}
    """By row: guesses that follow its last token, counted in `num_scheduled_tokens`. A row with drafts is not in the
    next step before the worker has said how many of them were right."""
    snapshots: dict[int, tuple[int, int]] = {}
    """By row: behind how many of the request's tokens a snapshot of its state is to be made, and in which place. No
    request of this step starts with it."""
    num_source_tokens: int = 0
    """Places of encoders' inputs that are to be read before the tokens are computed."""
    copies: list[BlockCopies] = []
    """Of each KV group, between its blocks and host memory; empty if there are none."""

    @property
    def num_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)

    @property
    def decodes_and_prompt_tokens(self) -> tuple[int, int]:
        """Rows that generate, and tokens of all others, those that encoders read among them.

        Drafts count as neither: they hardly make a step longer.
        """
        num_drafts = sum(map(len, self.drafts.values()))
        num_decodes = self.num_scheduled_tokens.count(1) + len(self.drafts)
        return num_decodes, self.num_tokens + self.num_source_tokens - num_decodes - num_drafts


MAX_WITH_DRAFTS = 128
"""Tokens of a step with drafts: a larger one takes the longer, the more tokens it has."""
BY_MODEL = -1
"""A draft that the worker's draft model is to make. All drafts of a row are, or none."""
NOT_A_NUMBER = -2
NOTHING_ALLOWED = -3


class ModelRunnerOutput(msgspec.Struct):
    """What a step gave, parallel to the step's `rows`."""

    token_ids: list[list[int]]
    """The sampled tokens: none for a row that still has prompt to compute, one as a rule, and more where drafts were
    right. The last one may be NOT_A_NUMBER, if no token can be sampled from the row's logits, or NOTHING_ALLOWED, if
    its grammar lets no token pass."""
    logprobs: dict[int, list[Logprobs]] = {}
    """By index into `rows`, parallel to the sampled tokens, for rows that asked."""
    prompt_logprobs: dict[int, list[Logprobs]] = {}
    """By index into `rows`: of the prompt tokens that this step's chunk *predicts*, in order."""
    vectors: dict[int, bytes] = {}
    """By index into `rows`: float32 numbers of a predictor, such as an embedding, or the logit of each label; of a
    request with an `Alignment`, (tokens, places): how much they have to do with each other."""


class WorkerOutOfMemoryError(Exception):
    """A step needs more memory than there is; a smaller one may do."""


class RequestFaultError(Exception):
    """One of a step's requests asks for what cannot be done. The text is for its client."""


class WorkerLostError(Exception):
    """The device has failed in a way that no step of this process survives."""


class StepHandle(Protocol):
    """A step that was submitted and may still be running."""

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        ...

    def result(self) -> ModelRunnerOutput:
        """Wait for the step and return what it gave.

        Raises WorkerOutOfMemoryError, RequestFaultError, WorkerLostError, or what else the step raised.
        """
        ...


class Worker(Protocol):
    """Owner of the device: model weights, KV blocks, and every row's state."""

    def compile_grammar(self, grammar: str) -> Future[None]:
        """Get ready for requests with this grammar, at the side; the future raises ValueError if there can be none."""
        ...

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        """Fill a slot for adapters, below `Limits.num_adapters`, at the side: no step in flight may need it.

        The future raises ModelError for an adapter that is broken or does not fit.
        """
        ...

    def submit(self, step: SchedulerOutput) -> StepHandle:
        """Start a step and return at once where the device allows it. What goes wrong is raised by the handle."""
        ...


class KVGroup(msgspec.Struct, frozen=True):
    """KV memory of layers that keep their K and V for the same tokens: they share the numbers of their blocks."""

    num_blocks: int
    window: int | None = None
    """Only the last `window` tokens are needed; None if all of them are."""


class RowStates(msgspec.Struct, frozen=True):
    """What rows keep beside KV blocks: states of fixed size, which only go forward.

    So there are no drafts, and a request can start behind cached tokens only where a snapshot of the state was made.
    """

    num_snapshots: int
    """Places for snapshots; 0 if none can be made use of."""


class CrossMemory(msgspec.Struct, frozen=True):
    """KV memory of cross-attention: what a decoder reads of an encoder's output, in blocks of its own.

    A request's blocks of it do not grow: they hold all that its encoder has read.
    """

    num_blocks: int
    max_source_len: int
    """Most tokens of an encoder's input."""


class HostMemory(msgspec.Struct, frozen=True):
    """Room in the host's memory for KV blocks that had to make way for others."""

    num_blocks: tuple[int, ...]
    """Of each KV group."""
    seconds_of_block: float
    """What it takes to copy a block of every group there and back, as measured."""


@dataclass(frozen=True)
class Limits:
    """How much the worker can take; the scheduler keeps to it."""

    groups: tuple[KVGroup, ...]
    """Of KV memory; none if the model keeps nothing between steps."""
    max_model_len: int
    """Tokens of one request, prompt and output."""
    max_num_seqs: int
    """Rows."""
    max_num_batched_tokens: int
    """Tokens of one step."""
    max_itl: float
    """Seconds that a step with prompts in it may take while other requests wait for their next token."""
    step_sizes: tuple[int, ...] = ()
    """Numbers of tokens that steps with prompts are filled up to, ascending; none if a step takes what it has."""
    chunked_prefill: bool = True
    """Whether a prompt may be computed in several steps."""
    states: RowStates | None = None
    """None if rows keep nothing but what is in KV blocks."""
    host: HostMemory | None = None
    """None if there is no room for KV blocks but on the device."""
    num_adapters: int = 0
    """Slots for adapters."""
    cross: CrossMemory | None = None
    """None if requests have no encoder's input."""
    whole_media: bool = False
    """Whether a chunk of a prompt may not end within a medium, since its tokens see each other."""


@dataclass(frozen=True, kw_only=True)
class BuiltWorker:
    """A worker that is ready to run, and what can be said of it."""

    worker: Worker
    limits: Limits
    architecture: str
    model_impl: str
    device: str
    dtype: str
    vocab_size: int
    reads_images: bool = False
    startup_seconds: dict[str, float]
    """Phase to duration, in order."""
