"""Runs steps: prepare the input, forward pass, sample."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.attention.backends.base import AttentionBackend
from app.attention.backends.torch_paged import AttentionMetadata
from app.attention.context import ForwardContext, forward_context
from app.core.sampling import Logprobs
from app.core.step import NOT_SAMPLED, NOTHING_ALLOWED, ModelRunnerOutput, SchedulerOutput
from app.grammar.masks import Constrained, GrammarMasks, Masks, accept
from app.models.loader import LoadedModel
from app.worker.faults import named_faults
from app.worker.input_batch import InputBatch, PromptTargets, StepInput
from app.worker.sampler import Sampler, allow, top_logprobs


class ModelRunner:
    """The worker of one device. Steps run one after the other in a thread of their own.

    The thread lets the engine plan the next step meanwhile: torch does not hold Python's lock while it computes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: AttentionBackend[AttentionMetadata],
        device: torch.device,
        grammars: GrammarMasks,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self.model = loaded.model
        self.backend = backend
        self.device = device
        self.batch = InputBatch(max_num_seqs, max_model_len, block_size)
        self.grammars = grammars
        self.sampler = Sampler(max_num_seqs, loaded.vocab_size, device)
        # What each row sampled last: the next step's input, which need not pass through the engine.
        self.last_sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-runner")
        self._masks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="masks")

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        return self._thread.submit(self.execute, step)

    def compile_grammar(self, grammar: str) -> Future[None]:
        """See `app.core.step.Worker`."""
        return self.grammars.compile(grammar)

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step to its end."""
        with named_faults():
            return self._execute(step)

    def _execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        for request in step.new_requests:
            self.sampler.add(request.row, request.sampling, request.token_ids, request.num_prompt_tokens)
            self.grammars.add(request.row, request.sampling, request.token_ids[request.num_prompt_tokens :])
        batch = self.batch.prepare(step)
        targets = self.batch.prompt_targets(batch)
        constrained = self.grammars.constrained(batch.rows[batch.samples].tolist())
        masks = self._masks.submit(self.grammars.compute, constrained) if constrained else None
        with forward_context(ForwardContext(self.backend, self._metadata(batch))):
            hidden = self.model(self._input_ids(batch), self._tensor(batch.positions))
        # Logits of the last tokens of requests that sample, and of what logprobs of prompts need.
        last = batch.query_starts[1:][batch.samples] - 1
        logits_at = np.concatenate([last, *(target.logits_at for target in targets)])
        logits = self.model.compute_logits(hidden[self._tensor(logits_at)])
        prompt_logprobs = self._prompt_logprobs(logits[len(last) :], targets)
        return self._sample(step, batch, logits[: len(last)], constrained, masks, prompt_logprobs)

    def _input_ids(self, batch: StepInput) -> Tensor:
        """(tokens,): from the host, or what the row sampled last."""
        input_ids = self._tensor(batch.input_ids)
        sampled = self.last_sampled[self._tensor(batch.token_rows)]
        return torch.where(self._tensor(batch.input_is_sampled), sampled, input_ids)

    def _metadata(self, batch: StepInput) -> AttentionMetadata:
        return AttentionMetadata(
            slot_mapping=self._tensor(batch.slot_mapping),
            block_tables=self._tensor(batch.block_tables).long(),
            query_starts=batch.query_starts.tolist(),
            seq_lens=batch.seq_lens.tolist(),
            num_decodes=batch.num_decodes,
            block_size=self.batch.block_size,
        )

    def _prompt_logprobs(self, logits: Tensor, targets: list[PromptTargets]) -> dict[int, list[Logprobs]]:
        """By index into the step's rows."""
        parts = logits.split([len(target.token_ids) for target in targets])
        return {
            target.order: top_logprobs(part, self._tensor(target.token_ids), target.num_logprobs).to_lists()
            for target, part in zip(targets, parts, strict=True)
        }

    def _sample(
        self,
        step: SchedulerOutput,
        batch: StepInput,
        logits: Tensor,
        constrained: Constrained,
        masks: Future[Masks] | None,
        prompt_logprobs: dict[int, list[Logprobs]],
    ) -> ModelRunnerOutput:
        rows = batch.rows[batch.samples]
        indices = batch.order[batch.samples]
        wants = {
            i: s.logprobs for i, row in enumerate(rows) if (s := self.batch.sampling[row]) and s.logprobs is not None
        }
        # Reported log probabilities are the model's own: before penalties and bias change the logits.
        raw = {i: logits[i : i + 1].clone() for i in wants}
        if masks is not None:
            allow(logits, [index for index, _ in constrained], masks.result().words)
        tokens = self.sampler.sample(logits, rows, batch.seq_lens[batch.samples] - 1)
        valid = tokens.clamp(min=0)  # a row that has just failed may be in the next step all the same
        self.last_sampled[self._tensor(rows)] = valid
        token_ids = np.full(len(step.rows), NOT_SAMPLED)
        sampled = tokens.cpu().numpy()
        if masks is not None:
            sampled[masks.result().dead_ends] = NOTHING_ALLOWED
        token_ids[indices] = sampled
        for index, matcher in constrained:
            accept(matcher, int(sampled[index]))
        logprobs = {
            int(indices[i]): top_logprobs(raw[i], valid[i : i + 1], count).to_lists()[0] for i, count in wants.items()
        }
        return ModelRunnerOutput(token_ids.tolist(), logprobs, prompt_logprobs)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
