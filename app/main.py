"""The ASGI entry point, for any ASGI server: `uvicorn app.main:app`.

One process that starts an engine beside it. Settings come from PACELINE_* variables and the YAML file.
`paceline serve` does the same with a supervisor around it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI

from app.api.app import create_app
from app.api.process import running_service
from app.hub.source import find_model
from app.log import configure_logging
from app.settings import load_settings
from app.supervisor import EngineProcess


def make_app() -> FastAPI:
    """An application that starts an engine when it starts, and stops it when it stops."""
    settings = load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings, process="api")
        folder = await anyio.to_thread.run_sync(find_model, settings.model)
        engine = EngineProcess(settings, folder)
        try:
            async with running_service(settings, folder, engine.address) as service:
                app.state.service = service
                ready = await service.engine.wait_until_ready()
                service.metrics.record_startup(ready.startup_seconds)
                yield
        finally:
            engine.stop()

    return create_app(settings, lifespan)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, not whenever this module is imported."""
    if name == "app":
        return make_app()
    raise AttributeError(name)
