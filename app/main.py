"""The ASGI entry point, for any ASGI server: `uvicorn app.main:app`.

The process serves HTTP and starts an engine as its child. Settings come from PACELINE_* variables and the YAML file.
`paceline serve` does the same with a supervisor around it.
"""

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from .api.app import create_app
from .api.process import load_text_side, running_service
from .checkpoint.source import find_model
from .core.engine_client import EngineClient
from .core.wire import EngineReady
from .errors import EXIT_STARTUP_ERROR, StartupError
from .log import configure_logging
from .settings import load_settings
from .supervisor.child import ChildLostError
from .supervisor.engine import EngineProcess

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.2
"""Time between two checks on the engine."""


def make_app() -> FastAPI:
    """An application that starts an engine when it starts, and stops the engine when it stops.

    The model is found at once, which may mean downloading or converting it. Raises StartupError if that fails.
    """
    settings = load_settings()
    configure_logging(settings, process="api")

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
                watching = asyncio.create_task(_watch(engine))
                yield
                watching.cancel()
        except StartupError as error:
            atexit.register(_print_reason, error)  # behind the last words of the server
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
    while not ready.done():
        try:
            engine.check()
        except ChildLostError as error:
            ready.cancel()
            raise StartupError(str(error)) from None
        await asyncio.wait([ready], timeout=_CHECK_SECONDS)
    return ready.result()


async def _watch(engine: EngineProcess) -> None:
    """Check on the engine. If it cannot be kept running, end the server as a signal would."""
    try:
        while True:
            engine.check()
            await asyncio.sleep(_CHECK_SECONDS)
    except ChildLostError as error:
        log.error("%s", error)
        os.kill(os.getpid(), signal.SIGTERM)


def _print_reason(error: StartupError) -> None:
    """Print why there is no service, as `paceline serve` does."""
    print(f"paceline: {error}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, not when this module is imported."""
    if name == "app":
        try:
            return make_app()
        except StartupError as error:  # instead of the server's traceback
            _print_reason(error)
            sys.exit(EXIT_STARTUP_ERROR)
    raise AttributeError(name)
