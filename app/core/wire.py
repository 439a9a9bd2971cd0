"""The messages between API workers and the engine process: msgpack structs over ZeroMQ, never pickles."""

from typing import Literal

import msgspec

from .media import Media, Placed
from .request import DEFAULT_TENANT, FinishReason
from .sampling import Logprobs, SamplingParams
from .step_report import StepReport

# ------------------------------------------------------------------ API worker to engine


class HelloCommand(msgspec.Struct, tag=True):
    """First message of an API worker; answered by EngineReady once the model is loaded.

    What the engine still runs for an earlier worker of that name has lost its clients, and is aborted.
    """


class RequestTiming(msgspec.Struct, array_like=True):
    """`time.monotonic()` at the points where the engine saw a request change."""

    arrived_at: float
    scheduled_at: float
    first_token_at: float
    finished_at: float
    """0 for a request that has not finished."""


class Progress(msgspec.Struct, kw_only=True):
    """The output of a request so far, from which an engine continues: up to the death of the last one, or to where
    the API has put other tokens in the place of what the engine generated."""

    token_ids: list[int] = msgspec.field(default_factory=list)
    """Generated tokens."""
    num_prompt_logprobs: int = 0
    num_cached_tokens: int = 0
    timing: RequestTiming | None = None
    """None if there was no token."""
    is_suspect: bool = False
    """Several engines died while they ran it, so it has to run alone, where it can harm no other request."""


class KeepMediaCommand(msgspec.Struct, tag=True):
    """Keep these for requests of this API worker that follow, and name them by their digests."""

    media: list[Media]


class DropMediaCommand(msgspec.Struct, tag=True):
    """No open request of this API worker has these any more."""

    digests: list[bytes]


class GenerateCommand(msgspec.Struct, tag=True, kw_only=True):
    """Generate tokens. `request_id` is unique among all open requests of the engine."""

    request_id: str
    prompt_token_ids: list[int]
    """Not empty; each within the vocabulary; no more than the model's context."""
    source: Media | None = None
    """What the encoder of an encoder-decoder reads, of at most `EngineReady.max_source_len` tokens. Its arrays, and
    those of `placed`, go ahead of it in a KeepMediaCommand."""
    sampling: SamplingParams
    priority: int = 0
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    """The tenant's share of the service, relative to the weights of other tenants."""
    cache_salt: str = ""
    cache_retention: float = 0.0
    """Seconds for which its KV blocks had better stay in the cache behind its end; a wish, not a promise."""
    adapter: str = ""
    """The name of an adapter; empty for the model as it is."""
    adapter_folder: str = ""
    """Its folder. Another adapter may have the name when an engine goes on with the request; empty: whatever has it."""
    max_drafts: int | None = None
    """Most drafts in a step; None leaves it to the engine. They change no text."""
    placed: list[Placed] = []
    """See `Extras`."""
    arrived_at: float
    """Seconds, `time.monotonic()`."""
    progress: Progress | None = None
    """Of a request that is submitted again."""


class PredictCommand(msgspec.Struct, tag=True, kw_only=True):
    """Have a model read an input, and answer with numbers. `request_id` is unique among all open requests of the
    engine."""

    request_id: str
    token_ids: list[int] = msgspec.field(default_factory=list)
    """Of a text: not empty; each within the vocabulary; no more than the model reads."""
    type_ids: list[int] = msgspec.field(default_factory=list)
    """Parallel to `token_ids`: which text of a pair each token is of, 0 or 1."""
    media: Media | None = None
    """What is read if it is no text."""
    num_ignored: int = 0
    """See `Extras`."""
    priority: int = 0
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    arrived_at: float
    """Seconds, `time.monotonic()`."""

    @property
    def num_tokens(self) -> int:
        """Of its input; media count as the places that they take."""
        return self.media.num_tokens if self.media else len(self.token_ids)

    @property
    def sort_key(self) -> tuple[int, float]:
        """Smaller is served earlier: priority, then first come, first served."""
        return (self.priority, self.arrived_at)


RequestCommand = GenerateCommand | PredictCommand


class AbortCommand(msgspec.Struct, tag=True):
    """End these requests now. Unknown ids are ignored: they may just have finished."""

    request_ids: list[str]


class LoadAdapterCommand(msgspec.Struct, tag=True):
    """Load an adapter, unless it is loaded from this folder; answered by AdapterOutcome."""

    name: str
    folder: str


class UnloadAdapterCommand(msgspec.Struct, tag=True):
    """Take no more requests of an adapter, if there is one; answered by AdapterOutcome."""

    name: str


class WatchCommand(msgspec.Struct, tag=True):
    """Send StepReported for WATCH_SECONDS from now on, since somebody watches, and once in any case."""


WATCH_SECONDS = 3.0

EngineCommand = (
    HelloCommand
    | KeepMediaCommand
    | DropMediaCommand
    | GenerateCommand
    | PredictCommand
    | AbortCommand
    | LoadAdapterCommand
    | UnloadAdapterCommand
    | WatchCommand
)

# ------------------------------------------------------------------ engine to API worker


Task = Literal["generate", "embed", "classify", "token_classify", "score", "forecast", "transcribe"]
"""What a model can do. `token_classify`: find names and the like. `score`: say how well two texts belong together.
`forecast`: say how series of numbers go on. `transcribe`: write down what is said."""


class EngineReady(msgspec.Struct, tag=True, kw_only=True):
    """The engine accepts requests; describes the model and the limits."""

    tasks: tuple[Task, ...]
    architecture: str
    model_impl: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    max_source_len: int = 0
    """Most tokens of an encoder's input; 0 if there is no encoder, or the model is nothing else."""
    max_num_seqs: int
    block_size: int
    num_kv_blocks: int
    reads_images: bool = False
    startup_seconds: dict[str, float]
    """Phase to duration, in order."""
    adapters: dict[str, str] = {}
    """Name to folder."""
    adapters_of_start: list[str] = []
    """Those of them that no API worker has asked for, nor unloaded: the setting `lora` has them."""


class AdaptersChanged(msgspec.Struct, tag=True):
    """Sent to all API workers: the adapters that are loaded."""

    adapters: dict[str, str]
    """Name to folder."""


class AdapterOutcome(msgspec.Struct, tag=True):
    """What came of loading or unloading an adapter, for the API worker that asked."""

    name: str
    error: str
    """Why an adapter cannot be loaded, for people; empty if all is well."""


class RequestOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """News of one request. The last one, and only that, has a `finish_reason`."""

    request_id: str
    token_ids: list[int]
    """New tokens, in order. A stop token is among them."""
    logprobs: list[Logprobs] = msgspec.field(default_factory=list)
    """Parallel to `token_ids` where asked for."""
    prompt_logprobs: list[Logprobs] = msgspec.field(default_factory=list)
    """Of the prompt's second, third, ... token (the first has none), in pieces as chunks are computed."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; the same in every output of a request."""
    num_drafted_tokens: int = 0
    """Drafts of the steps that gave these tokens."""
    num_accepted_tokens: int = 0
    """Those that were right."""
    vector: bytes = b""
    """See `ModelRunnerOutput.vectors`."""
    finish_reason: FinishReason | None = None
    timing: RequestTiming | None = None
    """Comes with the first token, and again with `finish_reason`."""
    error: str = ""
    """For people, with FinishReason.ERROR."""
    blames_request: bool = False
    """The request itself causes the error, which would come again if the request were repeated."""

    def extend(self, later: "RequestOutput") -> None:
        """Merge the next output of the request into this one, in place: a slow reader may miss thousands."""
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.prompt_logprobs += later.prompt_logprobs
        self.num_drafted_tokens += later.num_drafted_tokens
        self.num_accepted_tokens += later.num_accepted_tokens
        self.vector = later.vector
        self.timing = later.timing or self.timing
        self.finish_reason, self.error = later.finish_reason, later.error
        self.blames_request = later.blames_request


COUNTERS = (
    "prefix_cache_queries",
    "prefix_cache_hits",
    "host_cache_hits",
    "num_blocks_out",
    "num_blocks_in",
    "num_preemptions",
    "num_drafted_steps",
    "num_drafted_tokens",
    "num_accepted_tokens",
)
"""Of `EngineStats`: what is counted since the last message, while everything else is the present state."""


class EngineStats(msgspec.Struct, kw_only=True):
    """The engine's state after a step, and what the step did."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float = 0.0
    """0 to 1: blocks that running requests hold. Blocks that only the prefix cache holds count as free."""
    kv_cache_retained: float = 0.0
    """0 to 1: blocks that are in the cache because somebody asked to keep them."""
    step_tokens: int = 0
    """0 if no step was run: requests ended in between."""
    step_seconds: float = 0.0
    prefix_cache_queries: int = 0
    """Prompt tokens looked up in this step."""
    prefix_cache_hits: int = 0
    host_cache_hits: int = 0
    """Those of them that came from host memory."""
    num_blocks_out: int = 0
    """KV blocks that were copied to host memory."""
    num_blocks_in: int = 0
    """KV blocks that were copied back from there."""
    num_preemptions: int = 0
    num_drafted_steps: int = 0
    """How many times a request had drafts in a step."""
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    """Drafts that were right, and so gave a token."""

    def extend(self, later: "EngineStats") -> None:
        """Merge the statistics of the next step: counters are added up, and all other values are replaced."""
        for name in COUNTERS:
            setattr(later, name, getattr(self, name) + getattr(later, name))
        for name in self.__struct_fields__:
            setattr(self, name, getattr(later, name))


class StepOutputs(msgspec.Struct, tag=True):
    """One message per step, to each API worker that has a part in it; of several steps if the worker is behind."""

    outputs: list[RequestOutput]
    stats: EngineStats | None
    """Sent to one API worker only, since what several workers count is added up."""


class StepReported(msgspec.Struct, tag=True):
    """What the batch looks like, for an API worker through which somebody watches. One that is behind misses some."""

    report: StepReport


EngineMessage = EngineReady | StepOutputs | AdaptersChanged | AdapterOutcome | StepReported

MAX_UNREAD_MESSAGES = 128
"""At either end of a connection from the engine to an API worker; beyond them the engine merges what it has to say."""
