"""Runs steps on a GPU: nothing is waited for but the tokens, and each step is a replay of recorded work.

A step is two pieces: the forward pass, from token ids to hidden states, in some shape that holds it; and sampling, from
hidden states to tokens, for some number of requests. What differs from step to step are numbers in a buffer.
"""

import logging
import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from app.attention.backends.triton_paged import GpuMetadata, TritonPagedBackend
from app.attention.context import ForwardContext, forward_context
from app.core.step import NOT_SAMPLED, NOTHING_ALLOWED, ModelRunnerOutput, SchedulerOutput, StepHandle
from app.grammar.masks import Constrained, GrammarMasks, accept
from app.kernels.gpu.launch import compiling
from app.kernels.gpu.linear import MOST_ROWS
from app.kernels.gpu.sampling import Scratch, adjust, choose
from app.models.loader import LoadedModel
from app.worker.cuda_graphs import CudaGraphs, decode_sizes, fitting, token_sizes
from app.worker.faults import named_faults
from app.worker.gpu_inputs import NOBODY, GpuInputs, StepShape
from app.worker.gpu_sampling import NO_LOGPROBS, RowSampling
from app.worker.input_batch import InputBatch, Ints, StepInput
from app.worker.sampler import TopLogprobs, top_logprobs

log = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 256
"""Rows of logits that are computed together for logprobs of prompts: each takes half a megabyte and more."""


class GpuRunner:
    """The worker of one GPU. `submit` returns while the GPU works: so the engine plans a step during the one before."""

    def __init__(
        self,
        loaded: LoadedModel,
        backend: TritonPagedBackend,
        device: torch.device,
        grammars: GrammarMasks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self.model = loaded.model
        self.backend = backend
        self.device = device
        self.batch = InputBatch(max_num_seqs, max_model_len, block_size)
        self.grammars = grammars
        self._to_accept: list[_Sampled] = []
        self.sampling = RowSampling(max_num_seqs, loaded.vocab_size, device)
        self.block_tables = torch.zeros(self.batch.block_table.shape, dtype=torch.int32, device=device)
        self._decode_sizes = decode_sizes(max_num_seqs)
        self.token_sizes = token_sizes(max_num_batched_tokens)
        """Of steps with chunks of prompts."""
        self.largest = self._mixed_shape(max_num_batched_tokens)
        self._inputs = GpuInputs(max_num_seqs, self.largest, backend.tile_tokens, self.block_tables.numel(), device)
        self._scratch = Scratch(max_num_seqs, loaded.vocab_size, device)
        self._tokens = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._hidden: Tensor
        """(max_num_batched_tokens, hidden_size): from one piece of a step to the other."""
        self._graphs: CudaGraphs | None = None

    def _mixed_shape(self, tokens: int, longest: int = 0) -> StepShape:
        """For steps with chunks of prompts, of two tokens at least: each may end with a tile that is not full."""
        requests = len(self.batch.num_blocks)
        tiles = tokens // self.backend.tile_tokens + min(tokens // 2, requests)
        decodes = min(tokens, requests)
        return StepShape(tokens, decodes, tiles, self.backend.splits(decodes, longest))

    def _decode_shape(self, decodes: int, longest: int = 0) -> StepShape:
        return StepShape(decodes, decodes, 0, self.backend.splits(decodes, longest))

    # ------------------------------------------------------------------ start-up

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the kernels, as far as they are not in the cache: several at a time. The layers need some cache."""
        with compiling(processes=os.cpu_count() or 1):
            self._allocate_hidden()
            for size in self._decode_sizes:  # these kernels take longest, so they are the first
                self._send_padding(self.largest, size)
                for draws in (False, True):
                    self._run_sampling(size, draws)
            mixed = [self._mixed_shape(size) for size in self.token_sizes if size <= MOST_ROWS]
            for shape in (self.largest, *mixed, *map(self._decode_shape, self._decode_sizes)):
                self._send_padding(shape)
                self._run_body(shape)

    @torch.inference_mode()
    def measure_activations(self) -> int:
        """Bytes that the largest step takes, beside weights and KV blocks. The layers need some cache already."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._allocate_hidden()
        before = torch.cuda.memory_allocated()
        self._send_padding(self.largest, self._decode_sizes[-1])
        self._run_body(self.largest)
        self._run_sampling(self._decode_sizes[-1], draws=True)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()
        return int(peak)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Run every shape once, so that all kernels are compiled, and record it where there is a GPU."""
        shapes = [self._mixed_shape(size) for size in self.token_sizes[::-1]]
        shapes += [self._decode_shape(size) for size in self._decode_sizes[::-1]]
        self._allocate_hidden()
        self._graphs = CudaGraphs() if self.device.type == "cuda" else None
        try:
            for shape in shapes:
                self._send_padding(shape)
                self._run(shape, partial(self._run_body, shape))
            for size in self._decode_sizes[::-1]:
                self._send_padding(shapes[-1], size)
                for draws in (False, True):
                    self._run((size, draws), partial(self._run_sampling, size, draws))
        except RuntimeError as error:
            if self._graphs is None or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            log.warning("this model's steps cannot be recorded as CUDA graphs, and run slower without: %s", error)
            self._graphs = None
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _allocate_hidden(self) -> None:
        if not hasattr(self, "_hidden"):
            shape = self._decode_shape(1)
            self._send_padding(shape)
            hidden = self._forward(shape)
            self._hidden = hidden.new_zeros(self.largest.tokens, hidden.shape[-1])

    def _send_padding(self, shape: StepShape, size: int = 1) -> None:
        """Send the numbers of a step of nothing but padding; `size`: requests to sample for."""
        self._inputs.write_body(None, shape)
        self._inputs.write_sampling(None, NOBODY, size, self.sampling)
        self._inputs.send(shape, 0)
        if self.device.type == "cuda":  # what was sent may be written over only when it has arrived
            torch.cuda.synchronize()

    # ------------------------------------------------------------------ a step

    def compile_grammar(self, grammar: str) -> Future[None]:
        """See `app.core.step.Worker`."""
        return self.grammars.compile(grammar)

    def submit(self, step: SchedulerOutput) -> StepHandle:
        """See `app.core.step.Worker`."""
        try:
            with named_faults():
                return self._launch(step)
        except Exception as error:  # the handle raises it
            return _Failed(error)

    @torch.inference_mode()
    def _launch(self, step: SchedulerOutput) -> StepHandle:
        for request in step.new_requests:
            self.sampling.add(request)
            self.grammars.add(request.row, request.sampling, request.token_ids[request.num_prompt_tokens :])
        batch = self.batch.prepare(step)
        samples = np.flatnonzero(batch.samples)
        rows, lengths = batch.rows[samples], batch.seq_lens[samples]
        self.sampling.let_stop(rows, lengths)

        shape = self._shape_of(batch)
        size = fitting(self._decode_sizes, max(1, len(rows)))
        self._inputs.next_step()
        self._inputs.write_body(batch, shape)
        self._inputs.write_sampling(batch, samples, size, self.sampling)
        self._send(step, shape)
        self._run(shape, partial(self._run_body, shape))
        result = _Launched(batch.order[samples], len(step.rows))
        self._add_prompt_logprobs(batch, result)
        if len(rows):
            constrained = self.grammars.constrained(rows.tolist())
            if constrained:
                result.dead_ends = self._send_masks(rows, constrained)
            self._sample(rows, size, result)
            if constrained:
                self._to_accept.append(_Sampled(result, constrained))
        if self.device.type == "cuda":
            result.end = torch.cuda.Event()
            result.end.record()
        return result

    def _shape_of(self, batch: StepInput) -> StepShape:
        count = len(batch.positions)
        longest = int(batch.seq_lens[: batch.num_decodes].max(initial=0))
        if count == batch.num_decodes:
            return self._decode_shape(fitting(self._decode_sizes, count), longest)
        return self._mixed_shape(fitting(self.token_sizes, count), longest)

    def _run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Replay what was recorded under a name. What is seen for the first time is run, and recorded."""
        if self._graphs is not None and name in self._graphs:
            self._graphs.replay(name)
            return
        work()
        if self._graphs is not None:
            self._graphs.record(name, work)

    def _sample(self, rows: Ints, size: int, result: "_Launched") -> None:
        """Draw the tokens, and have them sent to the host."""
        wants = np.flatnonzero(self.sampling.num_logprobs[rows] != NO_LOGPROBS)
        draws = not self.sampling.are_greedy(rows)
        if len(wants):  # reported log probabilities are the model's own: before penalties and bias change the logits
            logits = self._compute_logits(size)
            raw = logits[torch.from_numpy(wants).to(self.device)]
            self._choose(logits, size, draws)
            for at, index in enumerate(wants.tolist()):
                count = int(self.sampling.num_logprobs[rows[index]])
                tokens = self._tokens[index : index + 1].long().clamp(min=0)
                result.logprobs[int(result.indices[index])] = self._fetch(top_logprobs(raw[at : at + 1], tokens, count))
        else:
            self._run((size, draws), partial(self._run_sampling, size, draws))
        result.token_ids = self._to_host(self._tokens[: len(rows)])

    def _send_masks(self, rows: Ints, constrained: Constrained) -> list[int]:
        """Tell the device which tokens grammars allow next. It runs the forward pass meanwhile.

        Returns where they allow none.
        """
        for step in self._to_accept:
            step.accept()
        self._to_accept.clear()
        computed = self.grammars.compute(constrained)
        masks = torch.from_numpy(computed.words)
        at = torch.from_numpy(rows[[index for index, _ in constrained]])
        if self.device.type == "cuda":
            masks, at = masks.pin_memory(), at.pin_memory()
        self.sampling.memory.masks[at.to(self.device, non_blocking=True)] = masks.to(self.device, non_blocking=True)
        return computed.dead_ends

    def _add_prompt_logprobs(self, batch: StepInput, result: "_Launched") -> None:
        for target in self.batch.prompt_targets(batch):
            places = torch.from_numpy(target.logits_at).to(self.device)
            token_ids = torch.from_numpy(target.token_ids).to(self.device)
            pieces = zip(places.split(_LOGITS_AT_ONCE), token_ids.split(_LOGITS_AT_ONCE), strict=True)
            result.prompt_logprobs[target.order] = [
                self._fetch(top_logprobs(self.model.compute_logits(self._hidden[at]), ids, target.num_logprobs))
                for at, ids in pieces
            ]

    def _fetch(self, logprobs: TopLogprobs) -> TopLogprobs:
        return TopLogprobs(self._to_host(logprobs.token_ids), self._to_host(logprobs.logprobs))

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy that is complete when the step is."""
        if self.device.type == "cpu":
            return tensor.clone()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _send(self, step: SchedulerOutput, shape: StepShape) -> None:
        """Copy what was written to the device, and the blocks that rows got in this step to its block tables."""
        new = [(request.row, request.block_ids) for request in step.new_requests]
        places, values = [], []
        for row, block_ids in (*new, *step.new_blocks):  # a row is in one of them, and these are its last blocks
            end = int(self.batch.num_blocks[row])
            places.append(np.arange(end - len(block_ids), end) + row * self.block_tables.shape[1])
            values.append(block_ids)
        count = sum(map(len, values))
        if count:
            to_places, to_values = self._inputs.host_updates(count)
            np.concatenate(places, out=to_places, casting="same_kind")
            to_values[:] = np.concatenate(values)
        at, blocks = self._inputs.send(shape, count)
        if count:
            self.block_tables.view(-1).index_copy_(0, at.long(), blocks)

    # ------------------------------------------------------------------ what is recorded

    def _run_body(self, shape: StepShape) -> None:
        hidden = self._forward(shape)
        self._hidden[: shape.tokens].copy_(hidden)

    def _forward(self, shape: StepShape) -> Tensor:
        x = self._inputs.device_body(shape)
        sampled = self.sampling.memory.last_sampled[x.sampled_by.clamp(min=0)]
        input_ids = torch.where(x.sampled_by >= 0, sampled, x.input_ids)
        metadata = GpuMetadata(
            slot_mapping=x.slot_mapping,
            block_tables=self.block_tables,
            decode_rows=x.decode_rows,
            decode_lens=x.decode_lens,
            tiles=x.tiles.view(-1, 4),
            splits=shape.splits,
        )
        with forward_context(ForwardContext(self.backend, metadata)):
            hidden: Tensor = self.model(input_ids, x.positions.long())
        return hidden

    def _run_sampling(self, size: int, draws: bool) -> None:
        self._choose(self._compute_logits(size), size, draws)

    def _compute_logits(self, size: int) -> Tensor:
        _, logits_at = self._inputs.device_sampling(size)
        logits: Tensor = self.model.compute_logits(self._hidden[logits_at])
        return logits

    def _choose(self, logits: Tensor, size: int, draws: bool) -> None:
        params, _ = self._inputs.device_sampling(size)
        if draws:
            adjust(logits, params, self.sampling.memory)
        choose(logits, params, self.sampling.memory, self._scratch, self._tokens[:size], draws=draws)


@dataclass
class _Launched:
    """A step that the GPU works on."""

    indices: Ints
    """Into the step's rows: whose tokens come."""
    num_rows: int
    token_ids: Tensor | None = None
    dead_ends: list[int] = field(default_factory=list)
    """Of `indices`: where a grammar allows nothing."""
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TopLogprobs]] = field(default_factory=dict)
    end: torch.cuda.Event | None = None

    def done(self) -> bool:
        """See `StepHandle`."""
        try:
            return self.end is None or self.end.query()
        except torch.AcceleratorError:  # `result` will raise it
            return True

    def wait(self) -> None:
        """Until the step is complete."""
        if self.end is not None:
            with named_faults():
                self.end.synchronize()

    def result(self) -> ModelRunnerOutput:
        """See `StepHandle`."""
        self.wait()
        token_ids = np.full(self.num_rows, NOT_SAMPLED)
        if self.token_ids is not None:
            token_ids[self.indices] = self.token_ids.numpy()
        token_ids[self.indices[self.dead_ends]] = NOTHING_ALLOWED
        return ModelRunnerOutput(
            token_ids.tolist(),
            {index: logprobs.to_lists()[0] for index, logprobs in self.logprobs.items()},
            {
                index: [one for part in parts for one in part.to_lists()]
                for index, parts in self.prompt_logprobs.items()
            },
        )


@dataclass
class _Sampled:
    """A step whose grammars have not taken in yet what it sampled."""

    step: _Launched
    constrained: Constrained

    def accept(self) -> None:
        """Wait for the step, and have them take it in."""
        self.step.wait()
        assert self.step.token_ids is not None
        for index, matcher in self.constrained:
            accept(matcher, int(self.step.token_ids[index]))


@dataclass
class _Failed:
    """A step that could not be launched."""

    error: Exception

    def done(self) -> bool:
        """See `StepHandle`."""
        return True

    def result(self) -> ModelRunnerOutput:
        """Raises the error."""
        raise self.error
