"""The requests of one call, from submission to the last token."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ...core.engine_client import EngineClient
from ...core.request import FinishReason
from ...core.wire import GenerateCommand, RequestOutput, RequestTiming
from ...text.output_processor import OutputProcessor, TextDelta
from ...text.reasoning import ReasoningTokens
from ..edge.request_log import RequestLog, Usage
from ..service import Service
from .choices import Choice
from .reasoning import BoundedReasoning


class Generation:
    """The choices of one call, which run concurrently."""

    def __init__(self, service: Service, choices: Sequence[Choice], n: int, priority: int, entry: RequestLog) -> None:
        """Submit all choices: `n` for the first prompt, then `n` for the next one.

        Raises EngineUnavailableError or QueueFullError, and then leaves none running.
        """
        service.check_queue(entry.tenant)
        self._service = service
        self._engine: EngineClient = service.engine
        self._entry = entry
        self.usage = Usage()
        self._open: dict[int, _OpenChoice] = {}
        self._expiry: asyncio.TimerHandle | None = None
        if entry.deadline is not None:
            left = entry.deadline - time.monotonic()
            if left <= 0:
                raise service.expired(entry)
            self._expiry = asyncio.get_running_loop().call_later(left, self._expire)
        try:
            service.check_model(choices[0].adapter or None)  # an adapter may have been unloaded since the request came
            for index, choice in enumerate(choices):
                self._submit(index, choice, priority, counts_prompt=index % n == 0)
        except BaseException:
            for open_choice in self._open.values():  # counted as refused, not as aborted
                self._engine.abort(open_choice.command.request_id)
            self._open.clear()
            self._stop_clock()
            raise
        for choice in choices[::n]:
            self.usage.prompt_tokens += choice.num_prompt_tokens
            service.metrics.record_admitted(choice.num_prompt_tokens)
            if choice.source is None and not choice.placed:  # nobody could learn from its tokens without these
                service.kept_prompts.keep(choice.prompt_token_ids)
        self._adapter = choices[0].adapter
        if self._adapter:
            service.metrics.record_adapter_request(self._adapter)
        service.use_tokens(entry.tenant, "prompt", self.usage.prompt_tokens, self._adapter)
        entry.usage, entry.sampling, entry.num_choices = self.usage, choices[0].sampling, n

    def _submit(self, index: int, choice: Choice, priority: int, counts_prompt: bool) -> None:
        command = GenerateCommand(
            request_id=self._entry.engine_id(index),
            prompt_token_ids=choice.prompt_token_ids,
            source=choice.source,
            sampling=choice.sampling,
            priority=priority,
            tenant=self._entry.tenant.name,
            weight=self._entry.tenant.weight,
            cache_salt=self._entry.tenant.cache_salt,
            cache_retention=choice.cache_retention,
            adapter=choice.adapter,
            max_drafts=choice.max_drafts,
            placed=list(choice.placed),
            arrived_at=self._entry.arrived_at,
        )
        processor = OutputProcessor(self._service.tokenizer, choice.prompt_token_ids, choice.conditions)
        reasoning, tokenizer = choice.reasoning, self._service.tokenizer
        outputs = (
            self._engine.generate(command)
            if reasoning is None or reasoning.budget is None
            else BoundedReasoning(self._engine, command, reasoning, reasoning.budget, tokenizer)
        )
        count = None if reasoning is None else reasoning.new_count(tokenizer)
        self._open[index] = _OpenChoice(index, command, outputs, processor, count, counts_prompt)

    def _expire(self) -> None:
        for choice in self._open.values():
            self._engine.expire(choice.command.request_id)

    def _stop_clock(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()

    def abort(self) -> None:
        """Abort the choices that still run."""
        self._stop_clock()
        for choice in self._open.values():
            self._engine.abort(choice.command.request_id)
            self._record_finished(choice, FinishReason.ABORT)
        self._open.clear()

    async def deltas(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(choice index, delta) of all choices as they come. Closing the generator aborts those that still run.

        Raises InternalError if a choice fails, and aborts the others.
        """
        try:
            if len(self._open) == 1:
                (choice,) = self._open.values()
                async for output in choice.outputs:
                    delta = self._take(choice, output)
                    yield choice.index, delta
                    if delta.finish_reason is not None:
                        break
            else:
                async with aclosing(self._merged()) as merged:
                    async for item in merged:
                        yield item
        finally:
            self.abort()

    async def _merged(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """Merges several choices: one task for each puts its outputs into one bounded queue."""
        queue: asyncio.Queue[tuple[_OpenChoice, RequestOutput | Exception]] = asyncio.Queue(maxsize=len(self._open))

        async def pump(choice: _OpenChoice) -> None:
            try:
                async for output in choice.outputs:
                    await queue.put((choice, output))
            except Exception as error:  # raised by the reader of the queue
                await queue.put((choice, error))

        tasks = {index: asyncio.create_task(pump(choice)) for index, choice in self._open.items()}
        try:
            while self._open:
                choice, output = await queue.get()
                if choice.index not in self._open:  # it has met a stop string meanwhile
                    continue
                if isinstance(output, Exception):
                    raise output
                delta = self._take(choice, output)
                if delta.finish_reason is not None:
                    tasks[choice.index].cancel()
                yield choice.index, delta
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _take(self, choice: "_OpenChoice", output: RequestOutput) -> TextDelta:
        """Turn an output into text, and count its tokens."""
        delta = choice.processor.process(output)
        now, metrics = time.monotonic(), self._service.metrics
        if output.timing:
            choice.timing = output.timing
            self.usage.take_timing(output.timing)
        if choice.counts_prompt:
            self.usage.cached_tokens += output.num_cached_tokens
            choice.counts_prompt = False
        self.usage.drafted_tokens += output.num_drafted_tokens
        self.usage.accepted_tokens += output.num_accepted_tokens
        if delta.token_ids:
            if choice.last_at is None:
                choice.first_at = now
                self.usage.num_first_tokens += 1
                metrics.record_first_token(now - choice.command.arrived_at, len(delta.token_ids))
                self._entry.ttft = self._entry.ttft or now - choice.command.arrived_at
            else:
                metrics.record_token_gap(now - choice.last_at, len(delta.token_ids))
            choice.last_at = self.usage.last_token_at = now
            choice.num_tokens += len(delta.token_ids)
            self.usage.completion_tokens += len(delta.token_ids)
            if choice.reasoning is not None:
                self.usage.reasoning_tokens += choice.reasoning.count(delta.token_ids)
            self._service.use_tokens(self._entry.tenant, "generation", len(delta.token_ids), self._adapter)
        if delta.finish_reason is not None:
            del self._open[choice.index]
            if delta.needs_abort:
                self._engine.abort(choice.command.request_id)
            self._record_finished(choice, delta.finish_reason)
            if delta.finish_reason is FinishReason.ERROR:
                raise self._service.failed(delta.error, delta.blames_request)
            if delta.finish_reason is FinishReason.TIMEOUT:
                raise self._service.expired(self._entry)
        return delta

    def _record_finished(self, choice: "_OpenChoice", reason: FinishReason) -> None:
        seconds = time.monotonic() - choice.command.arrived_at
        self._service.metrics.record_finished(reason, seconds, choice.timing)
        self._service.metrics.record_text(choice.num_tokens, (choice.last_at or 0.0) - choice.first_at)
        self._entry.note_end(choice.index, reason, choice.timing)


@dataclass
class _OpenChoice:
    """A choice that has not ended."""

    index: int
    command: GenerateCommand
    outputs: AsyncIterator[RequestOutput]
    processor: OutputProcessor
    reasoning: ReasoningTokens | None
    counts_prompt: bool
    """Whether the cached tokens of its prompt are still to be counted: with the first output of one of n choices."""
    num_tokens: int = 0
    first_at: float = 0.0
    last_at: float | None = None
    timing: RequestTiming | None = None
    """The last one that the engine sent. A choice that ends at a stop string gets no final output."""
