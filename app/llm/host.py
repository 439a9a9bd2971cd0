"""The service inside of a program that is not ours: in a thread with an event loop of its own, an engine beside it.

So it is the same to a script, to a program with threads, and to one whose event loop runs already, such as a notebook.
The engine is started by its command line, not by `multiprocessing`: a script needs no `if __name__ == "__main__"`.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import FastAPI

from ..errors import EngineUnavailableError, PacelineError, StartupError
from ..own_engine import app_with_engine
from ..settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
_CLOSED = "this object is closed"
_ELSEWHERE = "this object belongs to another process, of which this is a fork: make one here"


class Host:
    """Runs the service from now on until `close`. Its methods may be called in any thread."""

    def __init__(self, settings: Settings) -> None:
        """Begin to start. That may mean downloading or converting the model."""
        self._settings = settings.model_copy(update={"batch_folder": None})  # which is a server's
        self.started: Future[FastAPI] = Future()
        """The application, once the engine is ready; StartupError if it does not start."""
        self._life: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._is_closed = False
        self._process_id = os.getpid()
        # It is a daemon, because at the end of a program Python waits for other threads before it calls `close`.
        self._thread = threading.Thread(target=self._run, name="paceline", daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the service's event loop. Raises EngineUnavailableError behind `close`, and in a fork."""
        if self._is_closed or self._is_elsewhere:
            work.close()
            raise EngineUnavailableError(_ELSEWHERE if self._is_elsewhere else _CLOSED)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. Ctrl-C cancels it."""
        future = self.begin(work)
        try:
            return future.result()
        except CancelledError:
            raise EngineUnavailableError(_CLOSED) from None
        finally:
            future.cancel()  # does nothing to what has ended

    @property
    def _is_elsewhere(self) -> bool:
        """Whether this is a fork of the process that has the thread."""
        return os.getpid() != self._process_id

    def close(self) -> None:
        """End the engine and all that still runs. A second call does nothing."""
        if self._is_closed or self._is_elsewhere:
            return
        self._is_closed = True
        self.started.cancel()
        if self._life is not None:  # else the thread is looking for the model, and sees later that it is not wanted
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._life.cancel)
            self._thread.join()

    def _run(self) -> None:
        try:
            app = app_with_engine(self._settings, self._on_end)
        except BaseException as error:
            self._fail(error)
            return
        if self._is_closed:
            return
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._live(app))
            except asyncio.CancelledError:
                pass  # it is closed
            except BaseException as error:
                self._fail(error)

    async def _live(self, app: FastAPI) -> None:
        self._life = asyncio.current_task()
        if self._is_closed:
            return
        async with app.router.lifespan_context(app):
            if not self.started.cancelled():
                self.started.set_result(app)
            await asyncio.Event().wait()

    def _fail(self, error: BaseException) -> None:
        if not self.started.done():
            self.started.set_exception(error)

    def _on_end(self, error: PacelineError) -> None:
        if not isinstance(error, StartupError):  # which `app` raises
            log.error("%s", error)
