"""What training wants of whatever learns from the teacher's answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..checkpoint.folder import ModelFolder
from .acceptance import Runs
from .answers import Answer


class Learner(Protocol):
    """A student or a draft head."""

    @property
    def module(self) -> nn.Module:
        """Those of its parameters that require gradients learn."""
        ...

    @property
    def sizes(self) -> dict[str, Any]:
        """For the report; and a checkpoint is of a learner with the same sizes."""
        ...

    def divergence(self, answers: Sequence[Answer]) -> Tensor:
        """How far each guess of a token is from the teacher's distribution, in nats."""
        ...

    def judge(self, answers: Sequence[Answer], other_luck: int = 0) -> tuple[Tensor, list[Runs]]:
        """The divergence, and what would be accepted along each answer. `other_luck` changes the seeds."""
        ...

    def own_answers(self, answers: Sequence[Answer], seed: int) -> Sequence[Answer] | None:
        """Its own answers to the same questions, which the teacher has judged; None for who learns nothing of such."""
        ...

    def more_figures(self, held_out: Sequence[Answer], batch_tokens: int) -> dict[str, Any]:
        """What else a report says of it."""
        ...

    def save(self, teacher: ModelFolder, out: Path) -> None:
        """Write a folder that can be served. What is measured afterwards is what was written."""
        ...
