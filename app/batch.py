"""`paceline batch`: the requests of a file, without a server. A run that was broken off goes on."""

import asyncio
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI

from .api.batches.lines import Checked, Line, answer_line, answered, check_lines, parse_line, read_lines
from .api.batches.run import run_lines
from .api.edge.inside import Inside
from .errors import InvalidRequestError, PacelineError, StartupError
from .llm.host import Host
from .llm.progress import progress_line
from .settings import load_settings
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
        self.num_failed = 0

    def write(self, line: Line, answer: Inside) -> None:
        """Write an answer, or keep it until those before it have come."""
        self.num_failed += answer.status != 200
        text = answer_line(f"batch_req_{uuid.uuid4().hex}", line.custom_id, answer)
        if self._order is None:
            self._file.write(text)
        else:
            self._waiting[line.custom_id] = text
            while self._next < len(self._order) and (ready := self._waiting.pop(self._order[self._next], None)):
                self._file.write(ready)
                self._next += 1
        self._file.flush()


def run_batch(source: Path, target: Path, is_ordered: bool, **flags: Any) -> str:
    """Answer the requests of a file that are not answered in `target` yet. Returns what has been done, for people.

    Raises StartupError if a line is no request, or the model cannot be loaded; PacelineError if the engine is lost.
    """
    checked = _check(source)
    done = _done(source, target)
    if len(done) == checked.num_lines:
        return f"all {checked.num_lines} answers are in {target} already"
    if done:
        print(f"{len(done)} of {checked.num_lines} answers are in {target} already", file=sys.stderr)
    host = Host(load_settings(**{"log_level": "warning", **flags}))
    try:
        app = host.started.result()
        with target.open("ab") as file:
            order = [line.custom_id for line in _left(source, done)] if is_ordered else None
            output = _Output(file, order)
            _run(host, app, source, done, checked.num_lines, output)
    except KeyboardInterrupt:
        raise PacelineError("stopped; the same command goes on") from None
    finally:
        host.close()
    failed = f", {output.num_failed} of them errors" if output.num_failed else ""
    return f"{checked.num_lines - len(done)} answers written to {target}{failed}"


def _run(host: Host, app: FastAPI, source: Path, done: set[str], count: int, output: _Output) -> None:
    service = app.state.service
    seqs = service.ready().max_num_seqs
    room = asyncio.Semaphore(seqs + min(seqs, service.settings.max_queue))
    with progress_line("answering", count, is_wanted=True) as advance:
        for _ in done:
            advance(0)

        def write(line: Line, answer: Inside) -> None:
            output.write(line, answer)
            advance(0)

        host.run(run_lines(app, EVERYBODY, _left(source, done), room, write))


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
        return set(answered(target))
    except InvalidRequestError as error:
        raise StartupError(error.message) from None
    except OSError as error:
        raise StartupError(f"{target} cannot be read: {error.strerror}") from None


def _left(source: Path, done: set[str]) -> Iterator[Line]:
    """The requests that are not answered yet."""
    lines = (parse_line(text) for text in read_lines(source))
    return (line for line in lines if line.custom_id not in done)
