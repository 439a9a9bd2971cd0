"""Runs steps: prepare the input, forward pass, sample."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.attention.backends.base import AttentionBackend
from app.attention.backends.torch_paged import AttentionMetadata
from app.attention.context import ForwardContext, forward_context
from app.core.step import NOT_SAMPLED, Logprobs, ModelRunnerOutput, SchedulerOutput
from app.models.loader import LoadedModel
from app.worker.input_batch import InputBatch, StepInput
from app.worker.sampler import Sampler, top_logprobs


class ModelRunner:
    """The worker of one device. Steps run one after the other in a thread of their own.

    The thread lets the engine plan the next step meanwhile: torch does not hold Python's lock while it computes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: AttentionBackend[AttentionMetadata],
        device: torch.device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self.model = loaded.model
        self.backend = backend
        self.device = device
        self.batch = InputBatch(max_num_seqs, max_model_len, block_size)
        self.sampler = Sampler(max_num_seqs, loaded.vocab_size, device)
        # What each row sampled last: the next step's input, which need not pass through the engine.
        self.last_sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-runner")

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        return self._thread.submit(self.execute, step)

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step to its end."""
        for request in step.new_requests:
            self.sampler.add(request.row, request.sampling, request.token_ids, request.num_prompt_tokens)
        batch = self.batch.prepare(step)
        logits_at, num_prompt_positions = self._positions_with_logits(batch)
        with forward_context(ForwardContext(self.backend, self._metadata(batch))):
            hidden = self.model(self._input_ids(batch), self._tensor(batch.positions))
        logits = self.model.compute_logits(hidden[self._tensor(logits_at)])
        num_sampling = len(logits_at) - sum(num_prompt_positions.values())
        prompt_logprobs = self._prompt_logprobs(batch, logits[num_sampling:], num_prompt_positions)
        return self._sample(step, batch, logits[:num_sampling], prompt_logprobs)

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

    def _positions_with_logits(self, batch: StepInput) -> tuple[NDArray[np.int64], dict[int, int]]:
        """Token indices whose logits are needed: last tokens of sampling requests, then what prompt logprobs need.

        The second value is how many of the latter each request has, by index into the batch.
        """
        last = batch.query_starts[1:][batch.samples] - 1
        wanted, counts = [last], {}
        for index, row in enumerate(batch.rows):
            sampling = self.batch.sampling[row]
            if sampling is None or sampling.prompt_logprobs is None:
                continue
            # The logits at a position predict the next one: the prompt's last has none to predict.
            start, end = batch.query_starts[index], batch.query_starts[index + 1]
            offset = int(batch.positions[start])
            first = start + max(0, int(self.batch.num_prompt_logprobs[row]) - offset)
            end = min(end, start + int(self.batch.num_prompt[row]) - 1 - offset)
            if first < end:
                wanted.append(np.arange(first, end))
                counts[index] = int(end - first)
        return np.concatenate(wanted), counts

    def _prompt_logprobs(self, batch: StepInput, logits: Tensor, counts: dict[int, int]) -> dict[int, list[Logprobs]]:
        """By index into the step's rows."""
        result = {}
        for (index, count), part in zip(counts.items(), logits.split(list(counts.values())), strict=True):
            row = batch.rows[index]
            sampling = self.batch.sampling[row]
            assert sampling is not None
            assert sampling.prompt_logprobs is not None
            start = max(int(batch.positions[batch.query_starts[index]]), int(self.batch.num_prompt_logprobs[row]))
            targets = self._tensor(self.batch.token_ids[row][start + 1 : start + 1 + count])
            result[int(batch.order[index])] = top_logprobs(part, targets, sampling.prompt_logprobs)
        return result

    def _sample(
        self, step: SchedulerOutput, batch: StepInput, logits: Tensor, prompt_logprobs: dict[int, list[Logprobs]]
    ) -> ModelRunnerOutput:
        rows = batch.rows[batch.samples]
        indices = batch.order[batch.samples]
        wants = {
            i: s.logprobs for i, row in enumerate(rows) if (s := self.batch.sampling[row]) and s.logprobs is not None
        }
        # Reported log probabilities are the model's own: before penalties and bias change the logits.
        raw = {i: logits[i : i + 1].clone() for i in wants}
        tokens = self.sampler.sample(logits, rows, batch.seq_lens[batch.samples] - 1)
        valid = tokens.clamp(min=0)  # a row that has just failed may be in the next step all the same
        self.last_sampled[self._tensor(rows)] = valid
        token_ids = np.full(len(step.rows), NOT_SAMPLED)
        token_ids[indices] = tokens.cpu().numpy()
        logprobs = {int(indices[i]): top_logprobs(raw[i], valid[i : i + 1], count)[0] for i, count in wants.items()}
        return ModelRunnerOutput(token_ids.tolist(), logprobs, prompt_logprobs)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
