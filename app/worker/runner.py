"""The one runner of steps: only what every model and every device needs stands here.

A step: take in new rows, prepare the input, forward pass, log probabilities of prompts, sample, deliver. How work
reaches the device is the execution's (`app.worker.execution`), attention the backend's (`app.attention.backends`),
tokens the sampling's (`app.worker.sampling`), and what a kind of model does beside tokens its state's.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..attention.backends.base import AttentionBackend
from ..attention.context import ForwardContext, forward_context
from ..attention.step import Ints, StepInput, StepShape
from ..core.sampling import SamplingParams
from ..core.step import NOTHING_ALLOWED, ModelRunnerOutput, NewRequest, SchedulerOutput, StepHandle
from ..grammar.masks import Constrained, GrammarMasks, Masks
from ..layers.adapters import adapters_of
from ..models.adapters import ModelAdapters
from ..models.loader import LoadedModel
from .aligner import Aligner
from .batch import NO_LOGPROBS, Entries, InputBatch, no_entries
from .drafts import accepted_tokens
from .execution import Execution, StepMemory, Work
from .faults import named_faults
from .host_blocks import HostBlocks
from .inputs import StepBuffer
from .model_state import ModelState
from .sampling.base import Sampling
from .sampling.logprobs import TopLogprobs, top_logprobs


class Drafter(Protocol):
    """Makes the drafts that the engine leaves to the worker; see `app.core.step.BY_MODEL`."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        ...

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """Learn what a row was given."""
        ...

    def see(self, entries: Entries, tokens: Tensor, hidden: Tensor) -> None:
        """Learn what a step has just drawn on the device, tokens (entries,), and all its hidden states, of which
        `entries.logits_at` are those that the tokens were drawn behind."""
        ...

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """The step with all of its drafts. Its rows have their blocks."""
        ...


_LOGITS_AT_ONCE = 256
"""Rows of logits that are computed together for logprobs of prompts: each takes half a megabyte and more."""


class ModelRunner:
    """The worker of one device; see `app.core.step.Worker`."""

    def __init__(
        self,
        loaded: LoadedModel,
        state: ModelState,
        backend: AttentionBackend[Any],
        execution: Execution,
        sampling: Sampling,
        grammars: GrammarMasks,
        batch: InputBatch,
        max_entries: int,
        device: torch.device,
        tables_of: "ModelRunner | None" = None,
    ) -> None:
        """`tables_of`: another runner whose block tables are this one's, too, and which keeps them up to date."""
        self.model = loaded.model
        self.state = state
        self.backend = backend
        self.execution = execution
        self.sampling = sampling
        self.grammars = grammars
        self.batch = batch
        self.device = device
        self.drafter: Drafter | None = None
        self.adapters: ModelAdapters | None = None
        self.host: HostBlocks | None = None
        self.aligner: Aligner | None = None
        tables = tables_of._buffer.block_tables if tables_of else None
        self._buffer: StepBuffer = StepBuffer(
            batch, backend, state, sampling, execution.largest, max_entries, device, tables
        )
        self._hidden: Tensor | None = None
        """(tokens of the largest step, hidden_size): hands hidden states from the forward pass to sampling."""
        self._masks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="masks")
        self._loads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")
        self._to_accept: list[tuple[_Launched, Constrained]] = []
        """Steps whose tokens the grammars have not taken in yet."""

    def compile_grammar(self, grammar: str) -> Future[None]:
        """See `app.core.step.Worker`."""
        return self.grammars.compile(grammar)

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        """See `app.core.step.Worker`."""
        assert self.adapters is not None
        return self._loads.submit(self.adapters.load, slot, Path(folder))

    def submit(self, step: SchedulerOutput) -> StepHandle:
        """See `app.core.step.Worker`."""
        return self.execution.submit(partial(self.launch, step))

    def add(self, request: NewRequest) -> None:
        """Give a row to a request; whoever had it is gone."""
        self.batch.add(request)
        self.state.add(request)
        self.sampling.add(request)
        self.grammars.add(request.row, request.sampling, request.token_ids[request.num_prompt_tokens :])
        if self.drafter:
            self.drafter.add(request)

    # ------------------------------------------------------------------ a step

    @torch.inference_mode()
    def launch(self, step: SchedulerOutput) -> "_Launched":
        """Start a step here and now: from a thread of the execution's, or within another runner's step."""
        if step.copies:
            assert self.host is not None
            self.host.copy(step.copies)
        for request in step.new_requests:
            self.add(request)
        self._buffer.begin(self.batch.take_blocks(step))
        if self.drafter:
            step = self.drafter.fill(step)
        batch = self.batch.prepare(step)
        entries = self.batch.entries(batch, step.drafts)
        constrained = self.grammars.constrained(entries.rows.tolist())
        masks = self._masks.submit(self._compute_masks, constrained, entries) if constrained else None

        shape, size = self.execution.shape(batch), self.execution.size(len(entries))
        self._buffer.write(batch, shape, entries, size)
        self._buffer.send(shape)
        self.execution.run(shape, partial(self._run_body, batch, shape))
        launched = _Launched(self.batch, self.batch.num_admissions.copy(), entries, len(step.rows), self.drafter)
        if self.aligner:
            aligned = self.aligner.vectors(step)
            launched.vectors = {order: self.execution.to_host(vector) for order, vector in aligned.items()}
        self._add_prompt_logprobs(batch, launched)
        if len(entries):
            if masks:
                computed = masks.result()
                self.sampling.mask([at for at, _ in constrained], computed.words)
                launched.dead_ends = computed.dead_ends
            self._sample(entries, size, launched)
            if masks:
                self._to_accept.append((launched, constrained))
        launched.end = self.execution.end()
        self._buffer.sent(launched.end)
        return launched

    def _compute_masks(self, constrained: Constrained, entries: Entries) -> Masks:
        """What grammars allow next, computed while the device runs the forward pass."""
        for launched, matchers in self._to_accept:
            launched.accept(matchers)
        self._to_accept.clear()
        return self.grammars.compute(constrained, entries.drafts)

    def _add_prompt_logprobs(self, batch: StepInput, launched: "_Launched") -> None:
        for target in self.batch.prompt_targets(batch):
            places = torch.from_numpy(target.logits_at).to(self.device)
            token_ids = torch.from_numpy(target.token_ids).to(self.device)
            pieces = zip(places.split(_LOGITS_AT_ONCE), token_ids.split(_LOGITS_AT_ONCE), strict=True)
            launched.prompt_logprobs[target.order] = [
                self._fetch(top_logprobs(self._logits(at), ids, target.num_logprobs)) for at, ids in pieces
            ]

    def _sample(self, entries: Entries, size: int, launched: "_Launched") -> None:
        """Draw the tokens, and have them sent to the host."""
        wants = np.flatnonzero(self.batch.num_logprobs[entries.rows] != NO_LOGPROBS)
        draws = self.sampling.draws(entries)
        if len(wants):  # reported log probabilities are the model's own, before anything changes the logits, as a rule
            at, numbers = self._buffer.sampling(size)
            logits = self._logits(at)
            raw = logits[torch.from_numpy(wants).to(self.device)]
            self.sampling.sample(logits, entries, numbers, draws=draws)
            for index, entry in enumerate(wants.tolist()):
                count = int(self.batch.num_logprobs[entries.rows[entry]])
                tokens = self.sampling.tokens[entry : entry + 1].long().clamp(min=0)
                ruled = self.sampling.ruled(entry)
                shown = raw[index : index + 1] if ruled is None else ruled[None].to(self.device)
                launched.logprobs[entry] = self._fetch(top_logprobs(shown, tokens, count))
        else:
            self.execution.run((size, draws), partial(self._run_sampling, entries, size, draws))
        tokens = self.sampling.tokens[: len(entries)]
        if self.drafter:
            assert self._hidden is not None
            self.drafter.see(entries, tokens, self._hidden)
        launched.tokens = self.execution.to_host(tokens)

    def _fetch(self, logprobs: TopLogprobs) -> TopLogprobs:
        return TopLogprobs(self.execution.to_host(logprobs.token_ids), self.execution.to_host(logprobs.logprobs))

    # ------------------------------------------------------------------ what may be recorded

    def _run_body(self, batch: StepInput, shape: StepShape) -> None:
        numbers = self._buffer.body(shape)
        sampled_by = numbers["sampled_by"]
        sampled = self.sampling.last_sampled[sampled_by.clamp(min=0)]
        input_ids = torch.where(sampled_by >= 0, sampled, numbers["input_ids"])
        metadata = self.backend.metadata(batch, shape, numbers, self._buffer.block_tables)
        with forward_context(ForwardContext(self.backend, metadata)), adapters_of(numbers.get("adapters")):
            hidden = self.model(input_ids, numbers["positions"].long(), **self.state.inputs(batch, numbers))
        if self._hidden is None:
            self._hidden = hidden.new_zeros(self.execution.largest.tokens, hidden.shape[-1])
        self._hidden[: shape.tokens].copy_(hidden)

    def _run_sampling(self, entries: Entries, size: int, draws: bool) -> None:
        at, numbers = self._buffer.sampling(size)
        self.sampling.sample(self._logits(at), entries, numbers, draws=draws)

    def _logits(self, at: Tensor) -> Tensor:
        """(n, vocab) float32, behind tokens `at` (n,) of the step."""
        assert self._hidden is not None
        logits: Tensor = self.model.compute_logits(self._hidden[at])
        return logits

    # ------------------------------------------------------------------ without an engine

    @torch.inference_mode()
    def logits_of(self, token_ids: list[int], start: int) -> Tensor:
        """Logits (n, vocab) float32 behind each token of a text from index `start` on, of which there are few.

        The text is one step's prompt, in row 0 and in the first KV blocks: this is for a runner that serves nobody.
        """
        length = len(token_ids)
        request = NewRequest(
            row=0,
            token_ids=token_ids,
            num_prompt_tokens=length,
            block_ids=[list(range(-(-length // self.batch.block_size)))] * len(self.batch.block_tables),
            sampling=SamplingParams(max_tokens=1, seed=0, temperature=0.0),
        )
        self.submit(SchedulerOutput([request], [], [0], ["text"], [length])).result()
        return self._logits(torch.arange(start, length, device=self.device))

    # ------------------------------------------------------------------ before the first request, see `Steps`

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do all that is done once. The KV blocks are there."""
        self.execution.prepare(self)

    @torch.inference_mode()
    def measure_memory(self) -> StepMemory:
        """See `Execution.measure_memory`."""
        return self.execution.measure_memory(self)

    def pad(self, shape: StepShape, size: int) -> None:
        """See `app.worker.execution.Steps`."""
        padding = self.batch.padding()
        self._buffer.begin(self.batch.take_blocks(SchedulerOutput()))
        self._buffer.write(padding, shape, no_entries(), size)
        self._buffer.send(shape)
        self._buffer.sent(self.execution.end())

    def body(self, shape: StepShape) -> Work:
        """See `app.worker.execution.Steps`."""
        return partial(self._run_body, self.batch.padding(), shape)

    def sampling_of(self, size: int, draws: bool) -> Work:
        """See `app.worker.execution.Steps`."""
        return partial(self._run_sampling, no_entries(), size, draws)

    def run_short_request(self) -> None:
        """See `app.worker.execution.Steps`. Block 0 is overwritten later."""
        self._run_prompts([min(2, self.batch.max_model_len - 1)])
        self.submit(SchedulerOutput([], [], [0], ["made up"], [1])).result()

    def run_largest(self) -> None:
        """See `app.worker.execution.Steps`. Block 0 is overwritten later."""
        most, longest, rows = self.execution.largest.tokens, self.batch.max_model_len - 1, len(self.batch.num_computed)
        self._run_prompts([min(longest, most - start) for start in range(0, most, longest)][:rows])
        self._run_prompts([1] * min(rows, most))  # which are what decodes are

    def _run_prompts(self, lengths: list[int]) -> None:
        requests = [
            NewRequest(
                row=row,
                token_ids=[0] * length,
                num_prompt_tokens=length,
                block_ids=[[0] * -(-(length + 1) // self.batch.block_size)] * len(self.batch.block_tables),
                sampling=SamplingParams(max_tokens=2, seed=0, top_k=2),
            )
            for row, length in enumerate(lengths)
        ]
        rows = list(range(len(lengths)))
        self.submit(SchedulerOutput(requests, [], rows, ["made up"] * len(rows), lengths)).result()


@dataclass
class _Launched:
    """A step that the device may still be working on; see `StepHandle`."""

    batch: InputBatch
    admissions: Ints
    """(rows,): the batch's `num_admissions` when the step was launched."""
    entries: Entries
    num_rows: int
    drafter: Drafter | None = None
    tokens: Tensor | None = None
    """(entries,)"""
    dead_ends: list[int] = field(default_factory=list)
    """Entries where a grammar allows nothing."""
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    """By entry."""
    prompt_logprobs: dict[int, list[TopLogprobs]] = field(default_factory=dict)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    """See `ModelRunnerOutput`."""
    end: torch.cuda.Event | None = None

    def done(self) -> bool:
        """See `StepHandle`."""
        try:
            return self.end is None or self.end.query()
        except torch.AcceleratorError:  # `result` will raise it
            return True

    def _wait(self) -> None:
        if self.end is not None:
            with named_faults():
                self.end.synchronize()

    def accept(self, constrained: Constrained) -> None:
        """Wait for the step, and have grammars take in what was sampled."""
        self._wait()
        assert self.tokens is not None
        accepted = dict(
            zip(self.entries.starts.tolist(), accepted_tokens(self.tokens.tolist(), self.entries), strict=False)
        )
        for entry, matcher in constrained:
            for token in accepted.get(entry, ()):
                matcher.accept(token)

    def result(self) -> ModelRunnerOutput:
        """See `StepHandle`."""
        self._wait()
        token_ids: list[list[int]] = [[] for _ in range(self.num_rows)]
        if self.tokens is None:
            return ModelRunnerOutput(token_ids, prompt_logprobs=self._prompt_logprobs(), vectors=self._vectors())
        sampled = self.tokens.tolist()
        for entry in self.dead_ends:
            sampled[entry] = NOTHING_ALLOWED
        accepted = accepted_tokens(sampled, self.entries)
        logprobs = {}
        starts = self.entries.starts.tolist()
        for order, start, tokens in zip(self.entries.order.tolist(), starts, accepted, strict=False):
            token_ids[order] = tokens
            if start in self.logprobs:
                logprobs[order] = [self.logprobs[start + at].to_lists()[0] for at in range(len(tokens))]
        rows = self.entries.rows[starts[:-1]]
        is_same = self.batch.num_admissions[rows] == self.admissions[rows]  # rows may be other requests' by now
        if self.drafter:
            for row, tokens in zip(rows[is_same].tolist(), compress(accepted, is_same), strict=True):
                self.drafter.take(row, tokens)
        if self.entries.drafts is not None:  # the others' tokens were counted when the step was prepared
            more = np.array([len(tokens) - 1 for tokens in accepted])
            self.batch.num_computed[rows] += np.where(is_same, more, 0)
        return ModelRunnerOutput(token_ids, logprobs, self._prompt_logprobs(), self._vectors())

    def _vectors(self) -> dict[int, bytes]:
        return {order: vector.numpy().tobytes() for order, vector in self.vectors.items()}

    def _prompt_logprobs(self) -> dict[int, Any]:
        return {
            order: [one for part in parts for one in part.to_lists()] for order, parts in self.prompt_logprobs.items()
        }
