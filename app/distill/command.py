"""`paceline distill`: from prompts to a folder with a student or a draft head."""

import gc
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..checkpoint.folder import ModelFolder
from ..checkpoint.source import find_model
from ..errors import ModelError, StartupError
from ..layers.methods.onednn import has_bfloat16
from ..models.reference import transformers_model
from ..settings import Settings, load_settings
from .answers import Answer, AnswerFile, Header, Question, digest
from .head import make_head
from .learner import Learner
from .own_answers import own_answers
from .prompts import PromptReader
from .questions import make_questions
from .report import REPORT, make_report, print_report, write_report
from .speed import measure_speed
from .states import StateFile, StateKeeper
from .student import StudentLearner, count_layers, make_student, perplexity, spaced_layers
from .task import Task
from .teacher import Teacher
from .training import Measurement, Trainer

log = logging.getLogger(__name__)
_CHECKPOINT = "checkpoint.safetensors"
_SHARE_OF_GPU = 0.5
"""Of a GPU's memory, for the teacher's engine; the student learns in the rest."""
_ANY_PAUSE = 1e6
"""Milliseconds of `max_itl`: nobody waits for the next token of an answer."""
_DEPTH = 5
"""A student has one of so many layers of the teacher, unless told otherwise."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())


def distill(task: Task, **flags: Any) -> None:
    """Write the folder of a student or a draft head, and print how well it guesses. `flags`: settings of the teacher.

    A run that was broken off goes on where it stood. Raises PacelineError.
    """
    console = Console(stderr=True)
    disable_progress_bar()
    settings = load_settings(
        model=task.teacher, gpu_memory_utilization=_SHARE_OF_GPU, speculate="off", max_itl=_ANY_PAUSE, **flags
    )
    folder = ModelFolder.open(find_model(settings.model))
    _check_teacher(folder)
    reader = PromptReader(folder.path)
    longest = settings.max_model_len or folder.max_position_embeddings or sys.maxsize
    prompts = reader.read(task.prompts, longest - task.max_tokens)
    questions = make_questions(list(prompts.values()), task.temperatures, task.recipe.seed, task.repeats)
    with _work_folder(task.out) as work:
        run = _Run(task, settings, folder, reader, prompts, questions, work, console)
        report = _learn(run)
        gc.collect()  # the teacher: only one engine may need the memory at a time
        report["speed"] = _speed(task, settings, folder, [each for each in questions if each.held_out])
        write_report(report, task.out)
        (work / _CHECKPOINT).unlink()
    print_report(report, console)


@dataclass(frozen=True)
class _Run:
    """A distillation that has a folder of its own, and questions for its teacher."""

    task: Task
    settings: Settings
    folder: ModelFolder
    """Of the teacher."""
    reader: PromptReader
    prompts: Mapping[int, list[int]]
    """By their lines."""
    questions: list[Question]
    work: Path
    """Where answers and the state of training are kept."""
    console: Console


def _learn(run: _Run) -> dict[str, Any]:
    """Have the teacher answer and somebody learn from it; what has learnt is saved. Returns the report."""
    task = run.task
    model = transformers_model(run.folder.path)  # before the answers, which take long: it may have no students
    layers = _layers(task, model)
    eos_token_ids = run.reader.tokenizer.eos_token_ids
    keeper = StateKeeper() if task.kind == "head" else None
    teacher = Teacher(run.settings, run.folder.path, eos_token_ids, keeper)
    _check_lengths(run.prompts, teacher.ready.max_model_len - task.max_tokens)
    answers, states = _answers(run, teacher, keeper)
    learnt = [answer for answer in answers if not answer.question.held_out]
    held_out = [answer for answer in answers if answer.question.held_out]
    device = torch.device(teacher.ready.device)
    fast = has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    model.to(device)  # type: ignore[arg-type]
    learner: Learner
    if states:
        learner = make_head(model, learnt, states.read(answers), fast, task.recipe.seed)
    else:
        of_teacher = perplexity(model, held_out, task.recipe.batch_tokens, fast)
        own = partial(own_answers, teacher, eos_token_ids)
        learner = StudentLearner(make_student(model, layers).to(device), layers, own, fast, of_teacher)  # type: ignore[arg-type]
    del model
    trainer = Trainer(learner, learnt, held_out, task.recipe, run.work / _CHECKPOINT)
    _train(trainer, run.console)
    learner.save(run.folder, task.out)
    return make_report(task, trainer)


def _answers(run: _Run, teacher: Teacher, keeper: StateKeeper | None) -> tuple[list[Answer], StateFile | None]:
    """The teacher's answers to all questions, of which some may be there already; with a keeper, its states."""
    size = teacher.hidden_size if keeper else 0
    file = AnswerFile(run.work / "answers.jsonl", _header(run.task, run.settings, teacher, size, run.questions))
    answers = list(file.read())
    states = StateFile(run.work / "states.bin", size, answers) if keeper else None

    def kept(new: Iterable[Answer]) -> Iterator[Answer]:
        """Answers, when their states are kept."""
        for answer in new:
            if keeper and states:
                states.add(keeper.pop(answer))
            yield answer

    missing = kept(teacher.answer(run.questions[len(answers) :], run.task.max_tokens))
    _add_missing(answers, file.add(missing), len(run.questions), run.console)
    return answers, states


def _speed(task: Task, settings: Settings, folder: ModelFolder, questions: list[Question]) -> list[dict[str, Any]]:
    """What drafts of it are worth; nothing where the service would refuse them."""
    try:
        with_drafts = settings.model_copy(update={"draft_model": str(task.out), "speculate": "draft"})
        return measure_speed(with_drafts, folder.path, questions)
    except StartupError as error:
        log.warning("what drafts are worth is not measured: %s", error)
        return []


def _layers(task: Task, model: PreTrainedModel) -> list[int]:
    """Those of the teacher that a student has; none for a head."""
    if task.kind == "head":
        return []
    total = count_layers(model)
    return spaced_layers(total, max(1, total // _DEPTH) if task.layers is None else task.layers)


def _check_teacher(folder: ModelFolder) -> None:
    if folder.predictor is not None:
        raise ModelError(f"--teacher: {folder.architecture} is an encoder, which generates nothing")
    if folder.quantization is not None and folder.gguf_file is None:
        kind = folder.quantization.get("quant_method")
        raise ModelError(f"--teacher: the weights in {folder.path} are quantized ({kind}), and no student learns them")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Where answers and the state of training are kept, for this process alone.

    Raises StartupError for a folder of something else, or of a run that goes on elsewhere.
    """
    work = out / "distill"
    if (out / REPORT).exists():
        raise StartupError(f"--out: {out} has a student already")
    if out.exists() and not work.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise StartupError(f"--out: {out} is neither empty nor a run that was broken off")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", blocking=False)
        lock.acquire()
    except Timeout:
        raise StartupError(f"--out: another run is writing to {out}") from None
    except OSError as error:
        raise StartupError(f"--out: {out} cannot be written: {error.strerror}") from error
    try:
        yield work
    finally:
        lock.release()


def _check_lengths(prompts: Mapping[int, list[int]], room: int) -> None:
    for line, prompt in prompts.items():
        if len(prompt) > room:
            raise StartupError(
                f"--prompts: line {line} has {len(prompt)} tokens, and there is room for {room} in front of an answer"
            )


def _header(task: Task, settings: Settings, teacher: Teacher, size: int, questions: list[Question]) -> Header:
    ways = settings.quantization, settings.kv_dtype, settings.model_impl, settings.attention_backend
    how = f"{task.teacher}, {teacher.ready.dtype}, {', '.join(ways)}"
    return Header(teacher=how, max_tokens=task.max_tokens, states=size, questions=digest(questions))


def _add_missing(answers: list[Answer], new: Iterable[Answer], total: int, console: Console) -> None:
    """Append those that are still missing."""
    with Progress(*_COLUMNS, console=console) as progress:
        shown = progress.add_task("", total=total, completed=len(answers))
        num_tokens = 0
        for answer in new:
            answers.append(answer)
            num_tokens += len(answer.tokens)
            rate = num_tokens / max(1e-3, progress.tasks[0].elapsed or 0.0)
            told = f"the teacher has answered {len(answers):,} of {total:,}, {rate:,.0f} tokens/s"
            progress.update(shown, advance=1, description=told)


def _train(trainer: Trainer, console: Console) -> None:
    """Train to the end. What is measured stays on the screen, and the bar has the present loss."""
    with Progress(*_COLUMNS, console=console) as progress:
        shown = progress.add_task("learning", total=1.0)
        for measurement in trainer.run():
            if measurement is not None:
                console.print(_told(measurement), highlight=False, soft_wrap=True)
            loss = "" if trainer.loss is None else f", loss {trainer.loss:.3f}"
            told = f"step {trainer.step:,}{loss}"
            progress.update(shown, completed=trainer.progress, description=told)


def _told(found: Measurement) -> str:
    shares = ", ".join(f"{each['share']:.1%} at {heat}" for heat, each in found.acceptance.items())
    loss = "" if found.loss is None else f"loss {found.loss:.3f}, "
    return f"step {found.step:5,} {found.seconds:6.0f} s: {loss}held out {found.held_out_loss:.3f}; accepted {shares}"
