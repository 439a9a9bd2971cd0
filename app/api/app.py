"""The ASGI application: routes, errors, middleware."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from app import __version__
from app.api.document import install_document
from app.api.errors import install_error_handlers
from app.api.middleware import RequestMiddleware
from app.api.routes import chat, completions, encoders, messages, models, operations, responses, tokenize
from app.settings import ServerSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(settings: ServerSettings, lifespan: Lifespan) -> FastAPI:
    """An application that serves what `lifespan` puts at `app.state.service`."""
    app = FastAPI(title="Paceline", version=__version__, description="LLM inference service", lifespan=lifespan)
    install_error_handlers(app)
    app.add_middleware(RequestMiddleware, max_body_size=settings.max_body_size)
    for routes in (models, completions, chat, responses, messages, encoders, tokenize, operations):
        app.include_router(routes.router)
    install_document(app)
    return app
