"""What has come of it: a table for people, JSON for programs, and a picture."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .acceptance import MOST_DRAFTS
from .task import Task
from .training import Measurement, Trainer, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)
REPORT = "distill.json"
_PICTURE = "distill.png"
_SHOWN_DRAFTS = (1, 3, 5, 8)
_OTHER_LUCK = 0x5DEECE66D
"""Changes a seed, to measure what would be accepted if drafts were drawn independently."""


def make_report(task: Task, trainer: Trainer) -> dict[str, Any]:
    """All figures, for what is saved."""
    learner, tokens = trainer.learner, task.recipe.batch_tokens
    loss, acceptance = measure(learner, trainer.held_out, tokens)
    _, independent = measure(learner, trainer.held_out, tokens, _OTHER_LUCK)
    before = trainer.history[0]
    return {
        "kind": task.kind,
        "teacher": task.teacher,
        "prompts": task.prompts.name,
        "temperatures": list(task.temperatures),
        "max_tokens": task.max_tokens,
        "answers": len(trainer.answers),
        "answer_tokens": sum(len(answer.tokens) for answer in trainer.answers),
        "held_out_answers": len(trainer.held_out),
        "held_out_tokens": sum(len(answer.tokens) for answer in trainer.held_out),
        **learner.sizes,
        "recipe": msgspec.to_builtins(task.recipe),
        "steps": trainer.step,
        "seconds": trainer.seconds,
        "before": {"held_out_loss": before.held_out_loss, "acceptance": before.acceptance},
        "after": {"held_out_loss": loss, "acceptance": {heat: each.to_json() for heat, each in acceptance.items()}},
        **learner.more_figures(trainer.held_out, tokens),
        "accepted_with_independent_luck": {heat: each.share for heat, each in independent.items()},
        "history": msgspec.to_builtins(trainer.history),
    }


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write all figures, and the picture if matplotlib is there to draw it."""
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    try:
        _draw(msgspec.convert(report["history"], list[Measurement]), report["speed"], out / _PICTURE)
    except ImportError:
        log.warning("there is no picture beside %s: matplotlib is not installed", out / REPORT)


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print what is accepted before and after, what is lost, and what is gained."""
    table = Table(box=SIMPLE, title="Held-out tokens that are guessed, and tokens a step with so many drafts")
    drafts = [f"+{n}" for n in _SHOWN_DRAFTS]
    for heading in ("temperature", "training", "loss", "accepted", *drafts):
        table.add_column(heading, justify="right")
    for heat in report["after"]["acceptance"]:
        for when in ("before", "after"):
            found = report[when]["acceptance"][heat]
            steps = [f"{found['tokens_a_step'][n - 1]:.2f}" for n in _SHOWN_DRAFTS]
            loss = report[when]["held_out_loss"]
            table.add_row(heat, when, f"{loss:.3f}", f"{found['share']:.1%}", *steps)
    console.print(table)
    if "perplexity" in report:
        own, of_teacher = report["perplexity"], report["perplexity_of_teacher"]
        console.print(f"perplexity of held-out answers: {own:.2f}, the teacher's {of_teacher:.2f}", highlight=False)
    if report["speed"]:
        console.print(_speed_table(report["speed"]))


def _speed_table(speed: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE, title="Tokens a second of the service with drafts and without")
    for heading in ("clients", "without", "with", "times", "drafts right"):
        table.add_column(heading, justify="right")
    for found in speed:
        right = f"{found['accepted'] / found['drafted']:.0%}" if found["drafted"] else ""
        rates = found["tokens_a_second_without"], found["tokens_a_second"]
        table.add_row(str(found["clients"]), *(f"{rate:.0f}" for rate in rates), f"{found['times']:.2f}", right)
    return table


def _draw(history: Sequence[Measurement], speed: Sequence[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure  # an optional dependency; without pyplot, no display is needed

    figure = Figure(figsize=(16, 4), layout="constrained")
    losses, shares, depths, speeds = figure.subplots(1, 4)
    steps = [each.step for each in history]
    losses.plot(
        steps, [each.loss if each.loss is not None else float("nan") for each in history], "o-", label="training"
    )
    losses.plot(steps, [each.held_out_loss for each in history], "o-", label="held out")
    _label(losses, "Divergence from the teacher", "step", "nats a token")
    for heat in history[-1].acceptance:
        shares.plot(steps, [each.acceptance[heat]["share"] for each in history], "o-", label=f"temperature {heat}")
        for each, style in ((history[0], "o--"), (history[-1], "o-")):
            when = "before" if style == "o--" else "after"
            drafts = each.acceptance[heat]["first_drafts"]
            depths.plot(range(1, MOST_DRAFTS + 1), drafts, style, label=f"temperature {heat}, {when}")
    _label(shares, "Held-out tokens that are guessed", "step", "share")
    clients = [found["clients"] for found in speed]
    for name, label in (("tokens_a_second_without", "without drafts"), ("tokens_a_second", "with drafts")):
        speeds.plot(clients, [found[name] for found in speed], "o-", label=label)
    _label(speeds, "Speed of the service", "clients", "tokens a second")
    _label(depths, "So many drafts are all right", "drafts", "chance")
    figure.savefig(file, dpi=150)


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
