"""`paceline batch`: the requests of a file, without a server. A run that was broken off goes on."""

import asyncio
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from .api.batches.lines import Checked, Line, answer_line, answered, check_lines, parse_line, read_lines
from .api.batches.run import Group, run_lines
from .api.edge.inside import Inside
from .errors import InvalidRequestError, PacelineError, StartupError
from .llm.host import Host
from .llm.progress import progress_line
from .settings import Settings, load_settings
from .tenants import EVERYBODY

_SHOWN_PROBLEMS = 5


class _Output:
    """The file of answers: as they come, or in the order of the requests."""

    def __init__(self, file: BinaryIO, order: list[str] | None) -> None:
        """`order`: the ids of the requests whose answers are to come, if that is to be the order of the lines."""
        self._file = file
        self._order = order
        self._next = 0
        self._waiting: dict[str, bytes] = {}
        self.num_answers = 0
        self.num_failed = 0

    def write(self, line: Line, answer: Inside) -> None:
        """Write an answer, or keep it until those before it have come."""
        self.num_answers += 1
        self.num_failed += answer.status != 200
        text = answer_line(f"batch_req_{uuid.uuid4().hex}", line.custom_id, answer)
        if self._order is None:
            self._file.write(text)
        else:
            self._waiting[line.custom_id] = text
            while self._next < len(self._order) and (ready := self._waiting.pop(self._order[self._next], None)):
                self._file.write(ready)
                self._next += 1
        self._file.flush()  # so that it is there however this process ends


def run_batch(source: Path, target: Path, is_ordered: bool, **flags: Any) -> str:
    """Answer the requests of a file that are not answered in `target` yet. Returns what has been done, for people.

    Of several models, one runs after the other. Raises StartupError if a line is no request, `target` cannot be
    written, or a model cannot be loaded; PacelineError if the engine is lost.
    """
    checked = _check(source)
    done = _done(source, target)
    if len(done) == checked.num_lines:
        return f"all {checked.num_lines} answers are in {target} already"
    if done:
        print(f"{len(done)} of {checked.num_lines} answers are in {target} already", file=sys.stderr)
    settings = load_settings(takes_several=True, **{"log_level": "warning", **flags})
    with _open(target) as file:
        output = _Output(file, [line.custom_id for line in _left(source, done)] if is_ordered else None)
        for own, is_for in _models(settings):
            lines = (line for line in _left(source, done) if is_for(line))
            if (first := next(lines, None)) is not None:
                _run(own, chain([first], lines), output, len(done), checked.num_lines)
    failed = f", {output.num_failed} of them errors" if output.num_failed else ""
    return f"{output.num_answers} answers written to {target}{failed}"


def _models(settings: Settings) -> Iterator[tuple[Settings, Callable[[Line], bool]]]:
    """The settings of each model, and whether a request is for it. The first also gets those that are for none."""
    if not settings.models:
        yield settings, lambda _line: True
        return
    models = {name: settings.of_model(name) for name in settings.models}
    homes = {adapter: name for name, own in models.items() for adapter in own.lora} | {name: name for name in models}
    first = next(iter(models))

    def is_for(model: str, line: Line) -> bool:
        return homes.get(line.model or first, first) == model

    for name, own in models.items():
        yield own.model_copy(update={"memory_share": None}), partial(is_for, name)  # it has the memory alone


def _run(settings: Settings, lines: Iterator[Line], output: _Output, num_before: int, count: int) -> None:
    """Answer a model's requests. `num_before`: how many of all `count` had been answered when the command began."""
    host = Host(settings)
    try:
        app = host.started.result()
        service = app.state.service
        seqs = service.ready().max_num_seqs
        room = asyncio.Semaphore(seqs + min(seqs, service.settings.max_queue))
        with progress_line("answering", count, is_wanted=True) as advance:
            for _ in range(num_before + output.num_answers):
                advance(0)

            def write(line: Line, answer: Inside) -> None:
                output.write(line, answer)
                advance(0)

            host.run(run_lines(app, EVERYBODY, Group(service, lines), room, write))
    except KeyboardInterrupt:
        raise PacelineError("stopped; the same command goes on") from None
    finally:
        host.close()


def _check(source: Path) -> Checked:
    try:
        checked = check_lines(read_lines(source))
    except OSError as error:
        raise StartupError(f"{source} cannot be read: {error.strerror}") from None
    if checked.problems:
        shown = "; ".join(f"line {number}: {error}" for number, error in checked.problems[:_SHOWN_PROBLEMS])
        raise StartupError(f"{source}: {shown}")
    return checked


def _done(source: Path, target: Path) -> set[str]:
    """The ids of the requests that are answered already."""
    try:
        if target.exists() and target.samefile(source):
            raise StartupError(f"{target} has the requests; the answers need a file of their own")
        if target.exists() and not target.is_file():  # it would be read for answers, perhaps without end
            raise StartupError(f"{target} is no file, and the answers need one")
        return set(answered(target))
    except InvalidRequestError as error:
        raise StartupError(error.message) from None
    except OSError as error:
        raise StartupError(f"{target} cannot be read: {error.strerror}") from None


def _open(target: Path) -> BinaryIO:
    try:
        return target.open("ab")
    except OSError as error:
        raise StartupError(f"{target} cannot be written: {error.strerror}") from None


def _left(source: Path, done: set[str]) -> Iterator[Line]:
    """The requests that are not answered yet."""
    lines = (parse_line(text) for text in read_lines(source))
    return (line for line in lines if line.custom_id not in done)
