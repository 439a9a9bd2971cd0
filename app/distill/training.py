"""The loop of training: AdamW over the teacher's answers, with a warm-up and a cosine.

Everything random is a function of the seed and the step's number, so a run that goes on from a checkpoint gives the
weights of one that was never broken off. Only a limit of time makes the result depend on the machine's speed.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import torch

from .acceptance import Acceptance, Runs
from .answers import Answer
from .batches import divide, epoch
from .checkpoints import read_checkpoint, write_checkpoint
from .learner import Learner

BATCH_TOKENS = {"student": 1024, "head": 2048}
"""Of a step, padding included, by the kind of who learns: a head's tokens cost less."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How is learnt."""

    seed: int = 0
    minutes: float | None = None
    """Most minutes; None: until the data is used up."""
    epochs: int = 4
    """How often each answer is seen, at most."""
    batch_tokens: int
    """See BATCH_TOKENS."""
    learning_rate: float = 1e-3
    warm_up: int = 20
    """Steps until the learning rate is reached."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    own_from: float = 0.75
    """The part of the run behind which every second step learns from the student's own answers."""
    measurements: int = 10
    """How often held-out answers are looked at, and the state is kept."""


class Measurement(msgspec.Struct, kw_only=True):
    """Where who learns stands."""

    step: int
    seconds: float
    loss: float | None
    """Mean over the teacher's answers since the last measurement; None before the first step."""
    held_out_loss: float
    """Nats a token, as `app.distill.loss.divergence` says."""
    acceptance: dict[str, dict[str, Any]]
    """Temperature to `Acceptance`, of held-out answers."""


@dataclass
class Trainer:
    """Has somebody learn."""

    learner: Learner
    answers: Sequence[Answer]
    held_out: Sequence[Answer]
    recipe: Recipe
    checkpoint: Path
    step: int = 0
    seconds: float = 0.0
    """Of training, measurements included."""
    history: list[Measurement] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        learning = [parameter for parameter in self.learner.module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(learning, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
        self._steps = self.recipe.epochs * len(self._epoch(0))
        if self.checkpoint.exists():
            progress = read_checkpoint(self.checkpoint, self.learner.module, self._optimizer, self._run)
            self.step, self.seconds = progress["step"], progress["seconds"]
            self.history = msgspec.convert(progress["history"], list[Measurement])

    @property
    def progress(self) -> float:
        """The part of the run that is done, by steps or by time."""
        by_time = self.seconds / (60 * self.recipe.minutes) if self.recipe.minutes else 0.0
        return min(1.0, max(self.step / self._steps, by_time))

    @property
    def loss(self) -> float | None:
        """Mean since the last measurement."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def run(self) -> Iterator[Measurement | None]:
        """Learn to the end. Yields after each step: a measurement if it was time for one."""
        if not self.history:
            yield self._measure()
        batches = self._batches()
        while self.progress < 1:
            began = time.monotonic()
            before = self._due()
            self._learn(next(batches))
            self.seconds += time.monotonic() - began
            yield self._measure() if self._due() != before else None

    # ------------------------------------------------------------------ steps

    @property
    def _run(self) -> dict[str, Any]:
        return {"recipe": msgspec.to_builtins(self.recipe), "sizes": self.learner.sizes}

    def _epoch(self, number: int) -> list[Sequence[Answer]]:
        return epoch(self.answers, self.recipe.batch_tokens, self.recipe.seed, number)

    def _batches(self) -> Iterator[Sequence[Answer]]:
        """From the present step on."""
        skipped = self.step
        for number in count():
            batches = self._epoch(number)
            yield from batches[skipped:]
            skipped = max(0, skipped - len(batches))

    def _learn(self, answers: Sequence[Answer]) -> None:
        own = None
        if self.progress >= self.recipe.own_from and self.step % 2 == 1:
            own = self.learner.own_answers(answers, self.recipe.seed + self.step)
        loss = self.learner.divergence(own or answers).mean()
        self._optimizer.zero_grad()
        loss.backward()
        learning = self._optimizer.param_groups[0]
        torch.nn.utils.clip_grad_norm_(learning["params"], self.recipe.clip)
        learning["lr"] = self._learning_rate()
        self._optimizer.step()
        self.step += 1
        if own is None:
            self._losses.append(loss.item())

    def _learning_rate(self) -> float:
        """A line up, then half a cosine down."""
        warm = min(1.0, (self.step + 1) / self.recipe.warm_up)
        return self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.progress))

    # ------------------------------------------------------------------ measurements

    def _due(self) -> int:
        """A number that changes when it is time to measure."""
        return int(self.progress * self.recipe.measurements)

    def _measure(self) -> Measurement:
        """Look at the held-out answers, and keep the state."""
        began = time.monotonic()
        held_out_loss, acceptance = measure(self.learner, self.held_out, self.recipe.batch_tokens)
        self.seconds += time.monotonic() - began
        found = Measurement(
            step=self.step,
            seconds=self.seconds,
            loss=self.loss,
            held_out_loss=held_out_loss,
            acceptance={temperature: each.to_json() for temperature, each in acceptance.items()},
        )
        self.history.append(found)
        self._losses.clear()
        if self.step:
            progress = {"step": self.step, "seconds": self.seconds, "history": msgspec.to_builtins(self.history)}
            write_checkpoint(self.checkpoint, self.learner.module, self._optimizer, progress, self._run)
        return found


@torch.no_grad()
def measure(
    learner: Learner, held_out: Sequence[Answer], batch_tokens: int, other_luck: int = 0
) -> tuple[float, dict[str, Acceptance]]:
    """The mean divergence, and by temperature what is accepted. `other_luck`: see `Learner.judge`."""
    losses: list[float] = []
    found: dict[str, list[Runs]] = {}
    for part in divide(sorted(held_out, key=lambda each: len(each.question.prompt) + len(each.tokens)), batch_tokens):
        divergences, runs = learner.judge(part, other_luck)
        losses += divergences.tolist()
        for answer, of_answer in zip(part, runs, strict=True):
            found.setdefault(f"{answer.question.temperature:g}", []).append(of_answer)
    return sum(losses) / len(losses), {heat: Acceptance.of(found[heat]) for heat in sorted(found)}
