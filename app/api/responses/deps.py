"""FastAPI dependencies of these routes: where responses are kept, and whose they are."""

from typing import Annotated

from fastapi import Depends, Request

from ..edge.request_log import RequestLog
from .background import Background
from .store import ResponseStore


def _store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


def _background(request: Request) -> Background:
    background: Background = request.app.state.background
    return background


def _owner(request: Request) -> str:
    entry: RequestLog = request.scope["request_log"]
    return entry.tenant.name


StoreDep = Annotated[ResponseStore, Depends(_store)]
BackgroundDep = Annotated[Background, Depends(_background)]
OwnerDep = Annotated[str, Depends(_owner)]
"""The tenant's name."""
