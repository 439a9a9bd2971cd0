"""A fake engine in this process that answers as a script says."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from app.core.heartbeat import EngineHeartbeat
from app.core.request import FinishReason
from app.core.sampling import Logprobs
from app.core.step_report import StepCounts, StepReport
from app.core.wire import EngineReady, EngineStats, GenerateCommand, RequestOutput, RequestTiming
from app.engine.client import RequestStream
from app.errors import ApiError, QueueFullError
from tests.patience import PATIENCE

READY = EngineReady(
    tasks=("generate",),
    architecture="Fake",
    model_impl="fake",
    device="none",
    dtype="none",
    vocab_size=300,
    max_model_len=256,
    max_num_seqs=8,
    block_size=16,
    num_kv_blocks=64,
    startup_seconds={"load_weights": 1.5},
)

STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    kv_cache_usage=0.5,
    step_tokens=7,
    step_seconds=0.01,
    prefix_cache_queries=10,
    prefix_cache_hits=4,
    num_preemptions=1,
)

Script = Callable[[GenerateCommand], list[RequestOutput]]


class FakeEngine:
    """Plays a script for each request: one output at a time, each as soon as the one before was taken."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for its heartbeat."""
        self.heartbeat = EngineHeartbeat(f"ipc://{folder}/engine")
        self.reset()

    def reset(self) -> None:
        """Back to the state of a new engine."""
        self.ready: EngineReady | None = READY
        self.failure: str | None = None
        self.adapters: dict[str, str] = {}
        self.is_full = False
        self.refusal: ApiError | None = None
        self.script: Script = say("Hello")
        self.commands: queue.Queue[GenerateCommand] = queue.Queue()
        self.aborted: queue.Queue[str] = queue.Queue()
        self.released = threading.Event()
        self.released.set()
        self.refuse_after: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def wait_until_ready(self) -> EngineReady:
        """See EngineClient."""
        return READY

    async def load_adapter(self, name: str, folder: str) -> None:
        """See EngineClient."""
        self.adapters[name] = folder

    async def unload_adapter(self, name: str) -> None:
        """See EngineClient."""
        del self.adapters[name]

    async def wait_until_lost(self) -> None:
        """See EngineClient: it never is."""
        await asyncio.Event().wait()

    def generate(self, command: GenerateCommand, is_probe: bool = False) -> RequestStream:  # noqa: ARG002
        """See EngineClient."""
        if self.refusal is not None and self.commands.qsize() >= (self.refuse_after or 0):
            raise self.refusal
        command = structs.replace(command)  # as it is sent; it may be submitted again, changed
        self.commands.put(command)
        stream = RequestStream()
        task = asyncio.get_running_loop().create_task(self._play(command, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _play(self, command: GenerateCommand, stream: RequestStream) -> None:
        for output in self.script(command):
            while not self.released.is_set() or stream._pending is not None:
                await asyncio.sleep(0.001)
            stream.put(output)

    async def step_reports(self) -> AsyncGenerator[StepReport, None]:
        """See EngineClient: of an engine that nobody uses, then the end."""
        yield StepReport(1.0, 8, 16, StepCounts(), [], [], [], [])

    def check_room(self) -> None:
        """See EngineClient."""
        if self.is_full:
            raise QueueFullError("full")

    retry_after = 1
    has_requests = False

    def num_waiting(self, tenant: str) -> int:  # noqa: ARG002
        """See EngineClient."""
        return 0

    def num_waiting_tokens(self, tenant: str) -> int:  # noqa: ARG002
        """See EngineClient."""
        return 0

    def expire(self, request_id: str) -> None:
        """See EngineClient."""
        self.aborted.put(request_id)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        self.aborted.put(request_id)

    def last_command(self) -> GenerateCommand:
        """The latest request, which may be on its way."""
        command = self.commands.get(timeout=PATIENCE)
        with suppress(queue.Empty):
            while True:
                command = self.commands.get_nowait()
        return command


def say(
    text: str | list[int],
    reason: FinishReason | None = FinishReason.LENGTH,
    cached: int = 0,
    error: str = "",
    per_output: int = 1,
) -> Script:
    """A script: the bytes of a text, a token each, or token ids; then the end, or silence if `reason` is None.

    Log probabilities, where they are asked for: token t has -t/100, and the most probable ones are 0, 1, ... with
    -0.25, -0.5, ... unless the token itself is among them.
    """
    tokens = list(text.encode()) if isinstance(text, str) else text

    def script(command: GenerateCommand) -> list[RequestOutput]:
        sampling = command.sampling
        outputs = []
        wanted = tokens[: sampling.max_tokens]
        for start in range(0, len(wanted), per_output):
            chunk = wanted[start : start + per_output]
            outputs.append(RequestOutput(request_id=command.request_id, token_ids=chunk, num_cached_tokens=cached))
            if sampling.logprobs is not None:
                outputs[-1].logprobs = [logprobs_of(token, sampling.logprobs) for token in chunk]
        if not outputs or reason is FinishReason.ERROR:
            outputs.append(RequestOutput(request_id=command.request_id, token_ids=[], num_cached_tokens=cached))
        if sampling.prompt_logprobs is not None:
            prompt = [logprobs_of(token, sampling.prompt_logprobs) for token in command.prompt_token_ids[1:]]
            half = len(prompt) // 2
            first = RequestOutput(request_id=command.request_id, token_ids=[], prompt_logprobs=prompt[:half])
            outputs[0].prompt_logprobs = prompt[half:]
            outputs.insert(0, first)
        if reason is not None:
            at = command.arrived_at
            outputs[-1].finish_reason, outputs[-1].error = reason, error
            outputs[-1].timing = RequestTiming(at, at + 0.25, at + 1.0, at + 3.0)
        return outputs

    return script


def logprobs_of(token: int, count: int) -> Logprobs:
    """What the fake reports for a token."""
    return Logprobs([token, *range(count)], [-token / 100, *(-(i + 1) / 4 for i in range(count))])
