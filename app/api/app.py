"""The ASGI application: routes, errors, middleware."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from ..errors import StartupError
from ..settings import Settings
from ..version import __version__
from .audio import route as audio
from .audio.places import SoundPlaces
from .batches import files
from .batches import route as batches
from .batches.runner import BatchRunner
from .batches.store import BatchStore
from .chat import route as chat
from .completions import route as completions
from .edge.admission import Admission, AuthMiddleware
from .edge.azure import AzureMiddleware
from .edge.document import install_document
from .edge.errors import install_error_handlers
from .edge.head import HeadMiddleware
from .edge.middleware import Drain, Limit, RequestMiddleware
from .encoders import route as encoders
from .forecasts import route as forecasts
from .messages import route as messages
from .operations import adapters, health, models, steps, streams, tokenize
from .operations.deep_check import DeepCheck
from .page.route import page_router
from .responses import route as responses
from .responses import stored
from .responses.background import Background
from .responses.store import ResponseStore

if TYPE_CHECKING:
    from .edge.tracing import Tracing

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
_ROUTES = (
    models,
    completions,
    chat,
    responses,
    stored,
    messages,
    streams,
    files,
    batches,
    encoders,
    forecasts,
    audio,
    tokenize,
    adapters,
    steps,
    health,
)


def create_app(settings: Settings, lifespan: Lifespan) -> FastAPI:
    """An application that serves what `lifespan` puts at `app.state.service`.

    Raises StartupError if the file of API keys is broken, or tracing is wanted and its packages are not there.
    """
    tracing = _tracing(settings)
    # FastAPI itself makes pages that load their scripts from a CDN.
    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs-files",
        title="Paceline",
        version=__version__,
        description="LLM inference service",
        lifespan=_with_batches(lifespan, tracing),
    )
    install_error_handlers(app)
    _add_state(app, settings)
    _surround(app, settings, tracing)
    if settings.page:  # before the line of text at /
        app.include_router(page_router())
    for routes in _ROUTES:
        app.include_router(routes.router)
    install_document(app)
    return app


def _with_batches(lifespan: Lifespan, tracing: "Tracing | None") -> Lifespan:
    """The application's whole life: batches run in it, and what is left of traces is sent at its end."""

    @asynccontextmanager
    async def whole_life(app: FastAPI) -> AsyncIterator[None]:
        runner: BatchRunner | None = app.state.batch_runner
        try:
            async with lifespan(app):
                running = None if runner is None else asyncio.create_task(runner.run())
                yield
                if running is not None:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
        finally:
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    return whole_life


def _add_state(app: FastAPI, settings: Settings) -> None:
    """Add what requests find at `app.state`, beside the service."""
    app.state.deep_check = DeepCheck()
    app.state.drain = Drain(settings.drain_timeout)
    app.state.admission = Admission(settings)
    app.state.responses = ResponseStore.of(settings)
    app.state.background = Background()
    app.state.sound_places = SoundPlaces()
    app.state.batches = BatchStore(settings)
    has_batches = settings.batch_folder is not None
    app.state.batch_runner = BatchRunner(app, settings, app.state.batches) if has_batches else None


def _surround(app: FastAPI, settings: Settings, tracing: "Tracing | None") -> None:
    """Add what surrounds every request: the last one is the outermost."""
    app.add_middleware(HeadMiddleware)
    if settings.azure_paths:
        app.add_middleware(AzureMiddleware)
    app.add_middleware(AuthMiddleware, admission=app.state.admission, request_timeout=settings.request_timeout)
    app.add_middleware(RequestMiddleware, limits=_limits(settings), drain=app.state.drain, tracing=tracing)
    if settings.cors_origins:  # outside, because errors have to reach a page, and a preflight has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "X-Ignored-Fields"],
        )


def _limits(settings: Settings) -> dict[str, Limit]:
    limits = {"": Limit(settings.max_body_size, "max_body_size")}
    if settings.batch_folder is not None:
        limits[files.PATH] = Limit(settings.max_file_bytes, "max_file_bytes")
    return limits


def _tracing(settings: Settings) -> "Tracing | None":
    """The exporter of traces, if one is configured: its libraries are imported only then."""
    if settings.otlp_traces_endpoint is None:
        return None
    try:
        from .edge.tracing import Tracing
    except ModuleNotFoundError as error:
        raise StartupError(
            f"otlp_traces_endpoint: {error.name} is missing: {sys.executable} -m pip install "
            "opentelemetry-exporter-otlp-proto-http"
        ) from None
    return Tracing(str(settings.otlp_traces_endpoint))
