"""The teacher's hidden states along its answers, from which a draft head goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.step import NewRequest, SchedulerOutput
from ..errors import StartupError
from .answers import Answer

_BYTES = 2
"""Of a number: states are kept in bfloat16."""

States = dict[int, Tensor]
"""By an answer's seed, (n, hidden_size): behind which state each of its tokens was drawn."""


class _Entries(Protocol):
    """What is read of a step's `app.worker.batch.Entries`."""

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits_at: NDArray[np.int64]


class StateKeeper:
    """Looks on while the teacher answers. It has the place of a `Drafter`, and drafts nothing."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int]] = {}
        """Each row's seed, and its prompt's length."""
        self._states: dict[int, dict[int, Tensor]] = {}
        """By seed and number of the token."""

    def add(self, request: NewRequest) -> None:
        """See `Drafter`. A request that was preempted goes on."""
        self._rows[request.row] = request.sampling.seed, request.num_prompt_tokens
        self._states.setdefault(request.sampling.seed, {})

    def take(self, row: int, tokens: Sequence[int]) -> None:
        """See `Drafter`."""

    def see(self, entries: _Entries, tokens: Tensor, hidden: Tensor) -> None:  # noqa: ARG002
        """See `Drafter`."""
        states = hidden[torch.from_numpy(entries.logits_at).to(hidden.device)].to("cpu", torch.bfloat16)
        for row, position, state in zip(entries.rows.tolist(), entries.positions.tolist(), states, strict=True):
            seed, length = self._rows[row]
            if (of_answer := self._states.get(seed)) is not None:  # else it has ended, while this step was on its way
                of_answer[position + 1 - length] = state

    def fill(self, step: SchedulerOutput) -> SchedulerOutput:
        """See `Drafter`."""
        return step

    def pop(self, answer: Answer) -> Tensor:
        """The states (n, hidden_size) of an answer that is complete."""
        of_answer = self._states.pop(answer.question.seed)
        return torch.stack([of_answer[number] for number in range(len(answer.tokens))])


class StateFile:
    """States on disk, in the order of the answers."""

    def __init__(self, path: Path, size: int, answers: Sequence[Answer]) -> None:
        """Open the file beside these answers, or begin one. States of an answer that was not kept are dropped."""
        self._path, self._size = path, size
        path.touch()
        length = sum(len(answer.tokens) for answer in answers) * size * _BYTES
        if path.stat().st_size < length:
            raise StartupError(f"--out: {path} has fewer states than there are answers: name another folder")
        with path.open("r+b") as file:
            file.truncate(length)

    def add(self, states: Tensor) -> None:
        """Append (n, size) bfloat16."""
        with self._path.open("ab") as file:
            file.write(states.contiguous().view(torch.int16).numpy().tobytes())

    def read(self, answers: Sequence[Answer]) -> States:
        """The states of all answers, which stay on disk until they are looked at."""
        if not answers:
            return {}
        content = torch.from_numpy(np.memmap(self._path, np.int16, "c")).view(torch.bfloat16).view(-1, self._size)
        parts = content.split([len(answer.tokens) for answer in answers])
        return {answer.question.seed: part for answer, part in zip(answers, parts, strict=True)}
