"""Which layers of the teacher a student begins with: those that predict held-out answers best without training."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel

from .answers import Answer
from .student import choices_of_layers, make_student
from .training import measure


class Start(NamedTuple):
    """A student without training."""

    student: PreTrainedModel
    layers: list[int]
    """Of the teacher, from 0."""
    losses: dict[str, float]
    """Held-out loss of each choice of layers."""


def best_start(
    teacher: PreTrainedModel, num_layers: int, held_out: Sequence[Answer], batch_tokens: int, fast: bool
) -> Start:
    """The student that begins best. See `choices_of_layers`."""
    choices = choices_of_layers(teacher.config.num_hidden_layers, num_layers)
    losses: dict[str, float] = {}
    students: dict[str, PreTrainedModel] = {}
    for name, layers in choices.items():
        students[name] = make_student(teacher, layers)
        losses[name], _ = measure(students[name], held_out, batch_tokens, fast)
    best = min(losses, key=lambda name: losses[name])
    return Start(students[best], choices[best], losses)
