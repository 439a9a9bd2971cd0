"""Sampling on the GPU: parameters by row on the host, and in the order of a step's entries for the kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.sampling import SamplingParams
from ...core.step import NewRequest
from ...kernels.gpu.sampling import RowMemory, SamplingTensors, Scratch, adjust, choose
from ..batch import NO_DRAFT, Entries

_PARAMETERS: dict[str, tuple[type[np.generic], float]] = {
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
"""What `SamplingTensors` has of each row, wherever it is: its kind, and what stands for padding."""


class GpuSampling:
    """See `app.worker.sampling.base.Sampling`."""

    def __init__(self, max_num_seqs: int, max_entries: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self._memory = RowMemory(max_num_seqs, max_entries, vocab_size, device)
        self.last_sampled = self._memory.last_sampled
        self.tokens = torch.zeros(max_entries, dtype=torch.int32, device=device)
        self._scratch = Scratch(max_entries, vocab_size, device)
        self._values: dict[str, NDArray[Any]] = {
            name: np.zeros(max_num_seqs, dtype=kind) for name, (kind, _) in _PARAMETERS.items()
        }
        self._may_stop_at = np.zeros(max_num_seqs, dtype=np.int64)
        """The length of each row at which it may stop."""

    def add(self, request: NewRequest) -> None:
        """See `Sampling.add`."""
        row, sampling = request.row, request.sampling
        assert sampling.rules is None  # since steps of encoder-decoders are not recorded
        has_penalties = bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
        )
        has_minimum = bool(sampling.min_tokens and sampling.stop_token_ids)
        self._may_stop_at[row] = request.num_prompt_tokens + sampling.min_tokens if has_minimum else 0
        values: dict[str, float] = {
            "seed": sampling.seed,
            "top_k": sampling.top_k or self.vocab_size,
            "adjusts": has_penalties or has_minimum or bool(sampling.logit_bias or sampling.grammar),
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
        if has_minimum:
            stops = np.zeros(self._memory.stops.shape[1] * 32, dtype=np.uint8)
            stops[list(sampling.stop_token_ids)] = 1
            self._memory.stops[row] = torch.from_numpy(np.packbits(stops, bitorder="little").view(np.int32))

    def ruled(self, entry: int) -> None:
        """See `Sampling.ruled`: there are no rules here."""

    def _count(self, row: int, request: NewRequest) -> None:
        """Tell the device which tokens are in the prompt and the output so far."""
        counts = 2 * np.bincount(request.token_ids[request.num_prompt_tokens :], minlength=self.vocab_size)
        counts = np.minimum(counts, 2**15 - 2)
        counts[request.token_ids] |= 1
        self._memory.counts[row] = torch.from_numpy(counts.astype(np.int16))

    def _set_bias(self, row: int, sampling: SamplingParams) -> None:
        self._memory.bias[row] = 0.0
        if sampling.logit_bias:
            bias = self._memory.bias
            values = torch.tensor(list(sampling.logit_bias.values()), dtype=bias.dtype, device=bias.device)
            bias[row, list(sampling.logit_bias)] = values

    def fields(self) -> dict[str, type[np.generic]]:
        """See `Sampling.fields`."""
        own = ("rows", "positions", "may_not_stop", "drafts", "depths")
        return dict.fromkeys(own, np.int32) | {name: kind for name, (kind, _) in _PARAMETERS.items()}

    def write(self, entries: Entries, to: Mapping[str, NDArray[Any]]) -> None:
        """See `Sampling.write`."""
        count, rows = len(entries), entries.rows
        to["rows"][:count], to["rows"][count:] = rows, -1
        to["positions"][:count], to["positions"][count:] = entries.positions, 0
        to["may_not_stop"][:count], to["may_not_stop"][count:] = entries.positions + 1 < self._may_stop_at[rows], 0
        to["drafts"][:], to["depths"][:] = NO_DRAFT, 0
        if entries.drafts is not None:
            to["drafts"][:count], to["depths"][:count] = entries.drafts, entries.depths
        for name, (_, padding) in _PARAMETERS.items():
            to[name][:count], to[name][count:] = self._values[name][rows], padding

    def draws(self, entries: Entries) -> bool:
        """See `Sampling.draws`."""
        rows = entries.rows
        return bool(self._values["temperature"][rows].any() or self._values["adjusts"][rows].any())

    def mask(self, at: list[int], words: NDArray[np.int32]) -> None:
        """See `Sampling.mask`. Entries whose row has a grammar are `masked`, and get masks in each step."""
        masks, places = torch.from_numpy(words), torch.tensor(at)
        memory = self._memory.masks
        if memory.is_cuda:
            masks, places = masks.pin_memory(), places.pin_memory()
        memory[places.to(memory.device, non_blocking=True)] = masks.to(memory.device, non_blocking=True)

    def sample(self, logits: Tensor, entries: Entries, numbers: Mapping[str, Tensor], *, draws: bool) -> None:  # noqa: ARG002
        """See `Sampling.sample`."""
        params = SamplingTensors(**numbers)
        if draws:
            adjust(logits, params, self._memory)
        choose(logits, params, self._memory, self._scratch, self.tokens[: len(logits)], draws=draws)
