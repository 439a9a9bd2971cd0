"""The ASGI entry point, for any ASGI server: `uvicorn app.main:app`.

One process that starts an engine beside it. Settings come from PACELINE_* variables and the YAML file.
`paceline serve` does the same with a supervisor around it.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from app.api.app import create_app
from app.api.process import load_text_side, running_service
from app.checkpoint.source import find_model
from app.core.engine_client import EngineClient
from app.core.wire import EngineReady
from app.errors import EXIT_STARTUP_ERROR, StartupError
from app.log import configure_logging
from app.settings import load_settings
from app.supervisor.child import ChildLostError
from app.supervisor.engine import EngineProcess

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
"""How often to look after the engine."""


def make_app() -> FastAPI:
    """An application that starts an engine when it starts, and stops it when it stops.

    Finds the model at once, which may mean to download or convert it: what is wrong with it raises StartupError here.
    """
    settings = load_settings()
    configure_logging(settings, process="api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = EngineProcess(settings, folder)
        try:
            # Ray Serve, for one, runs applications in another thread, which may not handle signals.
            if settings.api_keys is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGHUP, lambda _number, _frame: app.state.admission.reload())
            async with running_service(settings, text, app.state.admission, engine.address) as service:
                app.state.service = service
                ready = await _wait_until_ready(service.engine, engine)
                service.metrics.record_startup(ready.startup_seconds)
                tending = asyncio.create_task(_tend(engine))
                yield
                tending.cancel()
        finally:
            engine.stop()

    app = create_app(settings, lifespan)  # first, since it reads the API keys, which may be broken
    folder = find_model(settings.model, needs_weights=settings.load_format != "dummy")
    text = load_text_side(settings, folder)
    return app


async def _wait_until_ready(client: EngineClient, engine: EngineProcess) -> EngineReady:
    """Wait for the engine to load its model; StartupError if it ends instead."""
    ready = asyncio.create_task(client.wait_until_ready())
    while not ready.done():
        try:
            engine.tend()
        except ChildLostError as error:
            ready.cancel()
            raise StartupError(str(error) or "the engine cannot start") from None
        await asyncio.wait([ready], timeout=_LOOK_SECONDS)
    return ready.result()


async def _tend(engine: EngineProcess) -> None:
    """Look after the engine; end the server, as a signal would, when there can be none."""
    try:
        while True:
            engine.tend()
            await asyncio.sleep(_LOOK_SECONDS)
    except ChildLostError as error:
        log.error("%s", error)
        os.kill(os.getpid(), signal.SIGTERM)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, not whenever this module is imported."""
    if name == "app":
        try:
            return make_app()
        except StartupError as error:  # one line, as from `paceline serve`, rather than the server's own traceback
            print(f"paceline: {error}", file=sys.stderr)
            sys.exit(EXIT_STARTUP_ERROR)
    raise AttributeError(name)
