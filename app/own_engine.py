"""The service with an engine of its own: a child of this process, watched, restarted and ended with the service.

`app.main` and `app.llm` stand on it. `paceline serve` does the same with a supervisor around it.
"""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .api.app import create_app
from .api.process import load_text_side, running_service
from .checkpoint.source import find_model
from .core.engine_client import EngineClient
from .core.wire import EngineReady
from .errors import PacelineError, StartupError
from .settings import Settings
from .supervisor.child import ChildLostError
from .supervisor.engine import EngineProcess

_CHECK_SECONDS = 0.2
"""Time between two checks on the engine."""


def app_with_engine(settings: Settings, on_end: Callable[[PacelineError], None]) -> FastAPI:
    """An application that starts an engine when it starts, and stops the engine when it stops.

    The model is found at once, which may mean downloading or converting it. Raises StartupError if that fails.
    `on_end` is told why the engine did not start (a StartupError, which is raised as well), or why no other will come
    (a ChildLostError); open requests have ended then.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = EngineProcess(settings, folder)
        try:
            # Ray Serve, for example, runs applications in another thread, which may not handle signals.
            if settings.api_keys is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGHUP, lambda _number, _frame: app.state.admission.reload())
            async with running_service(settings, text, app.state.admission, engine.address, time.time()) as service:
                app.state.service = service
                ready = await _wait_until_ready(service.engine, engine)
                service.metrics.record_startup(ready.startup_seconds)
                watching = asyncio.create_task(_watch(engine, service.engine, on_end))
                try:
                    yield
                finally:
                    watching.cancel()
        except StartupError as error:
            on_end(error)
            raise
        finally:
            engine.stop()

    app = create_app(settings, lifespan)  # first, since it reads the API keys, which may be broken
    folder = find_model(settings.model, needs_weights=settings.load_format != "dummy")
    text = load_text_side(settings, folder)
    return app


async def _wait_until_ready(client: EngineClient, engine: EngineProcess) -> EngineReady:
    """Wait until the engine has loaded its model. Raises StartupError if the engine ends instead."""
    ready = asyncio.create_task(client.wait_until_ready())
    try:
        while not ready.done():
            engine.check()
            await asyncio.wait([ready], timeout=_CHECK_SECONDS)
        return ready.result()
    except ChildLostError as error:
        raise StartupError(str(error)) from None
    finally:
        ready.cancel()  # nobody else waits for it


async def _watch(engine: EngineProcess, client: EngineClient, on_end: Callable[[PacelineError], None]) -> None:
    """Check on the engine until it cannot be kept running."""
    try:
        while True:
            engine.check()
            await asyncio.sleep(_CHECK_SECONDS)
    except ChildLostError as error:
        await client.close(str(error))
        on_end(error)
