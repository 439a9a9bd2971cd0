"""How each row wants to be sampled: on the host by row, for the kernels in the order of a step."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.sampling import SamplingParams
from app.core.step import NewRequest
from app.kernels.gpu.sampling import RowMemory

NO_LOGPROBS = -1
PARAMETERS: dict[str, tuple[Any, float]] = {
    "seed": (np.int64, 0),
    "temperature": (np.float32, 0.0),
    "top_k": (np.int32, 1),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "adjusts": (np.int32, 0),
    "presence": (np.float32, 0.0),
    "frequency": (np.float32, 0.0),
    "repetition": (np.float32, 1.0),
    "masked": (np.int32, 0),
}
"""What `SamplingTensors` has of each row: its kind, and what stands for padding."""


class RowSampling:
    """The sampling parameters of every row."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.memory = RowMemory(max_num_seqs, vocab_size, device)
        self.num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        self._values: dict[str, NDArray[Any]] = {
            name: np.zeros(max_num_seqs, dtype=kind) for name, (kind, _) in PARAMETERS.items()
        }
        self._suppressed: dict[int, tuple[int, SamplingParams]] = {}
        """Rows that may not stop yet, and the length at which they may."""

    def add(self, request: NewRequest) -> None:
        """Give a row to a request, which may have generated tokens before (after a preemption)."""
        row, sampling = request.row, request.sampling
        self._suppressed.pop(row, None)
        self.num_logprobs[row] = NO_LOGPROBS if sampling.logprobs is None else sampling.logprobs
        has_penalties = bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
        )
        may_stop_at = request.num_prompt_tokens + (sampling.min_tokens if sampling.stop_token_ids else 0)
        is_suppressed = len(request.token_ids) < may_stop_at
        values: dict[str, float] = {
            "seed": sampling.seed,
            "top_k": sampling.top_k or self.vocab_size,
            "adjusts": has_penalties or bool(sampling.logit_bias or sampling.grammar) or is_suppressed,
            "masked": bool(sampling.grammar),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "presence": sampling.presence_penalty,
            "frequency": sampling.frequency_penalty,
            "repetition": sampling.repetition_penalty,
        }
        for name, value in values.items():
            self._values[name][row] = value
        if not values["adjusts"]:
            return
        self._count(row, request)
        self._set_bias(row, sampling)
        if is_suppressed:
            self._suppressed[row] = may_stop_at, sampling
            self.memory.bias[row, list(sampling.stop_token_ids)] = float("-inf")

    def _count(self, row: int, request: NewRequest) -> None:
        """Tell the device which tokens are in the prompt and the output so far."""
        counts = 2 * np.bincount(request.token_ids[request.num_prompt_tokens :], minlength=self.vocab_size)
        counts = np.minimum(counts, 2**15 - 2)
        counts[request.token_ids] |= 1
        self.memory.counts[row] = torch.from_numpy(counts.astype(np.int16))

    def _set_bias(self, row: int, sampling: SamplingParams) -> None:
        self.memory.bias[row] = 0.0
        if sampling.logit_bias:
            bias = self.memory.bias
            values = torch.tensor(list(sampling.logit_bias.values()), dtype=bias.dtype, device=bias.device)
            bias[row, list(sampling.logit_bias)] = values

    def let_stop(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Lift what keeps rows from stopping, of those that are long enough now; `lengths`: tokens known so far."""
        if not self._suppressed:
            return
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            if row in self._suppressed and length >= self._suppressed[row][0]:
                self._set_bias(row, self._suppressed.pop(row)[1])

    def are_greedy(self, rows: NDArray[np.int64]) -> bool:
        """Whether all of these rows want just the most probable token."""
        return not (self._values["temperature"][rows].any() or self._values["adjusts"][rows].any())

    def write(self, rows: NDArray[np.int64], to: dict[str, NDArray[Any]]) -> None:
        """Write the parameters of `rows` to arrays of at least their number."""
        for name, (_, padding) in PARAMETERS.items():
            to[name][: len(rows)] = self._values[name][rows]
            to[name][len(rows) :] = padding
