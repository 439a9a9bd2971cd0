"""Runs the batches of a folder, under the live traffic. A batch that was broken off, by whatever, goes on.

One API worker does so: the one that holds a lock in the folder. Of each tenant, the oldest batch runs, beside those of
other tenants; all of them together have a bounded number of requests in flight for a model, at a low priority. A batch
of which only requests for models are left that cannot be loaded does not hold up the tenant's next one, unless there
are several such.
"""

import asyncio
import fcntl
import logging
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from fastapi import FastAPI

from ...errors import EngineUnavailableError, StartupError
from ...settings import Settings
from ...tenants import Tenant
from ..edge.inside import Inside
from ..edge.middleware import Drain
from ..service import Service
from ..services import services_at
from .lines import Checked, Line, answer_line, answered, check_lines, parse_line, read_lines, unanswered_line
from .objects import BatchObject, BatchProblem, BatchProblems, Status
from .run import Group, Write, grouped, run_lines, wake
from .store import BatchStore, TenantFolder, new_file_id

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
"""Between two looks at the folder."""
_PAUSE_SECONDS = 60
"""Before a batch is tried again whose state cannot be kept, such as on a full disk."""
_MOST_HELD_UP = 4
"""Batches of a tenant that wait for models which cannot be loaded. Each has two files open."""
_PRIORITY = 1_000_000
"""Added to that of each request: lower runs first."""


class BatchRunner:
    """Runs batches as long as its application lives."""

    def __init__(self, app: FastAPI, settings: Settings, store: BatchStore) -> None:
        """Raises StartupError if the folder cannot be written."""
        self._app = app
        self._settings = settings
        self._store = store
        self._rooms = _Rooms(settings.max_batch_requests)
        self._running: dict[asyncio.Task[None], _Run] = {}
        self._ended: set[str] = set()
        """Ids of batches."""
        assert settings.batch_folder is not None
        try:
            settings.batch_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(settings.batch_folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"batch_folder: {settings.batch_folder}: {error.strerror}") from None

    async def run(self) -> None:
        """Look for batches and run them, until cancelled or until the service drains."""
        drain: Drain = self._app.state.drain
        try:
            while not drain.has_begun:
                if self._is_mine() and _can_begin(self._app):
                    try:
                        await self._start_batches()
                    except (OSError, msgspec.DecodeError) as error:
                        log.error("batch_folder: %s", error)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            os.close(self._lock)

    def _is_mine(self) -> bool:
        """Whether this process runs the batches. The lock is held as long as it lives."""
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    async def _start_batches(self) -> None:
        held_up = Counter(run.tenant.name for run in self._running.values() if run.is_held_up)
        busy = {run.tenant.name for run in self._running.values() if not run.is_held_up}
        busy |= {name for name, count in held_up.items() if count >= _MOST_HELD_UP}
        begun = {run.batch_id for run in self._running.values()}
        for name, batch in await asyncio.to_thread(self._find, busy, begun):
            if (tenant := self._app.state.admission.tenant_named(name)) is not None:
                run = _Run(self._app, self._settings, self._store.of(name), tenant, batch, self._rooms)
                task = asyncio.create_task(_run_to_end(run))
                self._running[task] = run
                task.add_done_callback(self._running.pop)

    def _find(self, busy: set[str], begun: set[str]) -> list[tuple[str, BatchObject]]:
        """Of each tenant that is not busy, its oldest batch that has not ended, nor `begun`: by their ids."""
        idle = [name for name in self._store.tenants() if name not in busy]
        found = [(name, self._store.of(name).oldest_open(self._ended, begun)) for name in idle]
        return [(name, batch) for name, batch in found if batch is not None]


def _can_begin(app: FastAPI) -> bool:
    """Several models are woken by what is for them."""
    return services_at(app.state) is not None or app.state.service.engine.ready is not None


class _Rooms:
    """For the requests of batches that are in flight, of each model."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._rooms: dict[str, asyncio.Semaphore] = {}
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    def of(self, service: Service) -> asyncio.Semaphore:
        """Of a model that is loaded. By default, others find half of a step's places free."""
        most = self._most or max(1, service.ready().max_num_seqs // 2)
        return self._rooms.setdefault(service.model_name, asyncio.Semaphore(most))

    def turn(self, tenant: Tenant, service: Service) -> asyncio.Lock:
        """A model answers one batch of a tenant at a time, the oldest first: the others of all have the room, too."""
        return self._turns[tenant.name, service.model_name]


async def _run_to_end(run: "_Run") -> None:
    """Run a batch. If even its failure cannot be kept, nothing else of its tenant is tried for a while."""
    try:
        await run.run()
    except Exception:
        log.exception("batch %s is tried again in %d s", run.batch_id, _PAUSE_SECONDS)
        await asyncio.sleep(_PAUSE_SECONDS)


class _Run:
    """One batch, from where it stands to its end."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        folder: TenantFolder,
        tenant: Tenant,
        batch: BatchObject,
        rooms: _Rooms,
    ) -> None:
        self._app = app
        self._settings = settings
        self._folder = folder
        self.tenant = tenant
        self._batch = batch
        self._rooms = rooms
        self._input = folder.content_of(batch.input_file_id)
        self._has_news = False
        self._left_for: list[Service | None] = []
        """The models for which requests are left; see `Group`."""

    @property
    def batch_id(self) -> str:
        return self._batch.id

    @property
    def is_held_up(self) -> bool:
        """Whether all that is left is for models that cannot be loaded, and so nothing of it runs."""
        return bool(self._left_for) and all(one is not None and one.state == "failed" for one in self._left_for)

    async def run(self) -> None:
        """Run it. What has been answered is not sent again. Raises what keeps its end from being written."""
        try:
            await self._run()
        except EngineUnavailableError:
            self._save()  # another process goes on
        except OSError as error:
            log.error("batch %s: %s", self.batch_id, error)
            self._fail([BatchProblem("io_error", f"a file of the batch: {error.strerror}", None, None)])
        except Exception:
            log.exception("batch %s", self.batch_id)
            self._fail([BatchProblem("internal_error", "the server's log says what has failed", None, None)])
        finally:
            self._left_for = []  # it runs no more, and waits for no model

    async def _run(self) -> None:
        batch = self._batch
        if batch.status == "finalizing":
            self._finish("failed" if batch.errors is not None else self._reason_to_end() or "completed")
            return
        if batch.in_progress_at is None:
            if self._folder.is_cancelled(batch.id):
                self._finish("cancelled")
                return
            if not await self._validate():
                return
        with ExitStack() as stack:
            done = await asyncio.to_thread(self._done)
            output, error = (stack.enter_context(path.open("ab")) for path in self._folder.answers_of(batch.id))
            status = await self._answer(done, output, error)
            if status == "expired":
                await asyncio.to_thread(self._tell_unanswered, done, error)
        self._finish(status)

    async def _validate(self) -> bool:
        """Look at all requests before one is sent; returns whether they can be."""
        checked = await asyncio.to_thread(self._check)
        if checked.problems:
            self._fail(
                [
                    BatchProblem(one.error.code or "invalid_request", one.error.message, one.error.param, one.number)
                    for one in checked.problems
                ]
            )
            return False
        self._batch.request_counts.total = checked.num_lines
        self._batch.status, self._batch.in_progress_at = "in_progress", int(time.time())
        self._save()
        return True

    def _check(self) -> Checked:
        return check_lines(read_lines(self._input), self._batch.endpoint, self._settings.max_batch_lines)

    def _done(self) -> set[str]:
        """The ids of requests that are answered already."""
        output, error = (answered(path) for path in self._folder.answers_of(self._batch.id))
        counts = self._batch.request_counts
        counts.completed, counts.failed = len(output), len(error)
        return {*output, *error}

    async def _answer(self, done: set[str], output: BinaryIO, error: BinaryIO) -> Status:
        """Answer what is left, unless there is a reason to end before. Returns how the batch ends.

        `done`: the ids of requests that are answered; others are added.
        """

        def write(line: Line, answer: Inside) -> None:
            counts = self._batch.request_counts
            if answer.status == 200:
                counts.completed += 1
            else:
                counts.failed += 1
            file = output if answer.status == 200 else error
            file.write(answer_line(_new_line_id(), line.custom_id, answer))
            file.flush()
            done.add(line.custom_id)
            self._has_news = True

        work = asyncio.create_task(self._run_groups(done, write))
        try:
            while not work.done():
                if (reason := self._reason_to_end()) is not None:
                    return reason
                if self._has_news:
                    self._save()
                await asyncio.wait([work], timeout=_LOOK_SECONDS)
            work.result()
            return "completed"
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _run_groups(self, done: set[str], write: Write) -> None:
        """Each model's requests beside those of others. Raises EngineUnavailableError."""
        groups = await asyncio.to_thread(grouped, self._app, lambda: self._left(done))
        self._left_for = [group.service for group in groups]
        try:
            async with asyncio.TaskGroup() as tasks:
                for group in groups:
                    tasks.create_task(self._run_group(group, write))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _run_group(self, group: Group, write: Write) -> None:
        if (service := group.service) is None:
            await run_lines(self._app, self.tenant, group, asyncio.Semaphore(), write, priority=_PRIORITY)
        else:
            async with self._rooms.turn(self.tenant, service):
                await wake(self._app, service)
                await run_lines(self._app, self.tenant, group, self._rooms.of(service), write, priority=_PRIORITY)
        self._left_for = [one for one in self._left_for if one is not service]

    def _reason_to_end(self) -> Status | None:
        if self._folder.is_cancelled(self._batch.id):
            return "cancelled"
        return "expired" if time.time() > self._batch.expires_at else None

    def _left(self, done: set[str]) -> Iterator[Line]:
        lines = (parse_line(text) for text in read_lines(self._input))
        return (line for line in lines if line.custom_id not in done)

    def _tell_unanswered(self, done: set[str], error: BinaryIO) -> None:
        for line in self._left(done):
            told = "This request could not be executed before the completion window expired."
            error.write(unanswered_line(_new_line_id(), line.custom_id, "batch_expired", told))
            self._batch.request_counts.failed += 1

    def _finish(self, status: Status) -> None:
        """Show the answers as files, and how the batch has ended. If that is broken off, it is done again."""
        batch, folder = self._batch, self._folder
        paths = folder.answers_of(batch.id)
        if batch.status != "finalizing":
            batch.output_file_id, batch.error_file_id = (
                new_file_id() if _has_content(path) else None for path in paths
            )
            batch.status, batch.finalizing_at = "finalizing", int(time.time())
            self._save()
        for path, file_id in zip(paths, (batch.output_file_id, batch.error_file_id), strict=True):
            if file_id is not None:
                folder.adopt(path, file_id, f"{batch.id}{path.suffix.replace('.', '_')}.jsonl")
            path.unlink(missing_ok=True)
        if status == "cancelled":
            batch.cancelling_at = folder.batch(batch.id).cancelling_at
        batch.status = status
        setattr(batch, f"{status}_at", int(time.time()))
        self._save()
        log.info("batch %s of %s: %s", batch.id, self.tenant.name, status)

    def _fail(self, problems: list[BatchProblem]) -> None:
        """End it. What is answered already stays."""
        self._batch.errors = BatchProblems(data=problems)
        self._finish("failed")

    def _save(self) -> None:
        self._has_news = False
        self._folder.save(self._batch)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _new_line_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"
