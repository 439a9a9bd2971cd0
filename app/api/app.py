"""The ASGI application: routes, errors, middleware."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from app import __version__
from app.api.admission import Admission, AuthMiddleware
from app.api.deep_check import DeepCheck
from app.api.document import install_document
from app.api.drain import Drain
from app.api.errors import install_error_handlers
from app.api.middleware import RequestMiddleware
from app.api.routes import chat, completions, encoders, messages, models, operations, responses, streams, tokenize
from app.settings import Settings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(settings: Settings, lifespan: Lifespan) -> FastAPI:
    """An application that serves what `lifespan` puts at `app.state.service`.

    Raises StartupError if the file of API keys is broken.
    """
    app = FastAPI(title="Paceline", version=__version__, description="LLM inference service", lifespan=lifespan)
    install_error_handlers(app)
    app.state.deep_check = DeepCheck()
    app.state.drain = Drain(settings.drain_timeout)
    app.state.admission = Admission(settings)
    app.add_middleware(AuthMiddleware, admission=app.state.admission, request_timeout=settings.request_timeout)
    app.add_middleware(RequestMiddleware, max_body_size=settings.max_body_size, drain=app.state.drain)
    for routes in (models, completions, chat, responses, messages, streams, encoders, tokenize, operations):
        app.include_router(routes.router)
    install_document(app)
    return app
