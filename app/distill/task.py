"""What a user wants of a distillation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .training import Recipe


@dataclass(frozen=True)
class Task:
    """What is wanted of a distillation."""

    kind: Literal["student", "head"]
    teacher: str
    prompts: Path
    out: Path
    layers: int | None
    """Of a student; None: a fifth of the teacher's."""
    max_tokens: int
    """Of an answer."""
    temperatures: Sequence[float]
    """Of answers that are learnt from."""
    repeats: int
    """Answers to each prompt."""
    recipe: Recipe
