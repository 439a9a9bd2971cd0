"""The contract between scheduler and worker: what one forward pass is to do, and what came of it.

A running request has a *row*, its index into the worker's batch arrays. The worker learns of a request once,
in full (`NewRequest`), when it is given a row; after that only of changes: how many tokens to compute now, and
blocks added. A row is free for the next request as soon as the scheduler stops naming it.

Steps are executed in the order in which they were submitted.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.core.sampling import Logprobs, SamplingParams

if TYPE_CHECKING:
    from app.core.wire import EncodeCommand


class NewRequest(msgspec.Struct):
    """A request that was just given a row: for the first time, or again after a preemption."""

    row: int
    token_ids: list[int]
    """All tokens known so far: the prompt and, after a preemption, what was generated before it."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Tokens already in the KV cache, through the prefix cache."""
    block_ids: list[int]
    num_prompt_logprobs: int
    """Prompt logprobs that were reported before a preemption, and are not wanted again."""
    sampling: SamplingParams


class SchedulerOutput(msgspec.Struct):
    """One step. `rows`, `request_ids` and `num_scheduled_tokens` are parallel; each row occurs once."""

    new_requests: list[NewRequest]
    new_blocks: list[tuple[int, list[int]]]
    """(row, block ids to append to its block table), for rows that were known before."""
    rows: list[int]
    request_ids: list[str]
    num_scheduled_tokens: list[int]
    """Tokens to compute for each row: 1 for a decode, more for a chunk of a prompt.

    A row whose tokens are all computed after this step samples its next token. That token need not come back
    to the worker: the next position's input is what the row sampled last."""

    @property
    def num_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)

    @property
    def decodes_and_prompt_tokens(self) -> tuple[int, int]:
        """Rows with a single token to compute, and tokens of the others."""
        num_decodes = self.num_scheduled_tokens.count(1)
        return num_decodes, self.num_tokens - num_decodes


NOT_SAMPLED = -1
NOT_A_NUMBER = -2
NOTHING_ALLOWED = -3


class ModelRunnerOutput(msgspec.Struct):
    """What a step gave, parallel to the step's `rows`."""

    token_ids: list[int]
    """The sampled token; NOT_SAMPLED for a row that still has prompt to compute, NOT_A_NUMBER if no token can be
    sampled from the row's logits, NOTHING_ALLOWED if its grammar lets no token pass."""
    logprobs: dict[int, Logprobs] = msgspec.field(default_factory=dict)
    """By index into `rows`, for sampled tokens of rows that asked."""
    prompt_logprobs: dict[int, list[Logprobs]] = msgspec.field(default_factory=dict)
    """By index into `rows`: of the prompt tokens that this step's chunk *predicts*, in order."""


class WorkerOutOfMemoryError(Exception):
    """A step needs more memory than there is; a smaller one may do."""


class WorkerLostError(Exception):
    """The device has failed in a way that no step of this process survives."""


class StepHandle(Protocol):
    """A step that was submitted and may still be running."""

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        ...

    def result(self) -> ModelRunnerOutput:
        """Wait for the step and return what it gave.

        Raises WorkerOutOfMemoryError, WorkerLostError, or what else the step raised.
        """
        ...


class Worker(Protocol):
    """Owner of the device: model weights, KV blocks, and every row's state."""

    def compile_grammar(self, grammar: str) -> Future[None]:
        """Get ready for requests with this grammar, at the side; the future raises ValueError if there can be none."""
        ...

    def submit(self, step: SchedulerOutput) -> StepHandle:
        """Start a step and return at once where the device allows it. What goes wrong is raised by the handle."""
        ...


class EncoderWorker(Protocol):
    """Owner of the device and an encoder's weights."""

    def encode(self, commands: Sequence["EncodeCommand"]) -> list[bytes]:
        """Compute inputs; float32 numbers for each: the embedding, or the logit of each label."""
        ...


@dataclass(frozen=True)
class Limits:
    """How much the worker can take; the scheduler keeps to it."""

    num_blocks: int
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


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A worker that is ready to run, and what can be said of it."""

    limits: Limits
    architecture: str
    model_impl: str
    device: str
    dtype: str
    vocab_size: int
    startup_seconds: dict[str, float]
    """Phase to duration, in order."""


@dataclass(frozen=True, kw_only=True)
class BuiltWorker(_Built):
    """Of a model that generates."""

    worker: Worker


@dataclass(frozen=True, kw_only=True)
class BuiltEncoder(_Built):
    """Of an encoder."""

    worker: EncoderWorker
