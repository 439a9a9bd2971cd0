"""GET /v1/models and /v1/models/{id}"""

from typing import Literal

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from ...core.wire import Task
from ..deps import ServiceDep
from ..edge.answer import AnswerBody, json_response
from ..edge.document import ANY, answers
from ..service import Modality, Service
from ..services import services_of

router = APIRouter()


class ServedModel(AnswerBody, kw_only=True):
    """A model that is served, or an adapter of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["paceline"] = "paceline"
    max_model_len: int | None
    """Null while the model is loading."""
    tasks: tuple[Task, ...]
    """What it can do, and so which paths it answers."""
    parent: str | None
    """Of an adapter: its model."""
    input_modalities: list[Modality]
    """What it reads; a model that forecasts reads none of them."""
    state: Literal["ready", "loading", "asleep", "failed"] | UnsetType = UNSET
    """Of one of several models: a request wakes one that is asleep, and tries again with one that has failed."""


class ServedModels(AnswerBody, kw_only=True):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


@router.get("/v1/models", responses=answers(ServedModels))
async def list_models(request: Request) -> Response:
    """The models that are served here, of which there is one as a rule, and their adapters."""
    served = [
        _describe(service, name)
        for service in services_of(request)
        for name in (service.model_name, *service.engine.adapters)
    ]
    return json_response(ServedModels(data=served))


@router.get("/v1/models/{model_id:path}", responses=answers(ServedModel, (*ANY, 404)))
async def get_model(model_id: str, service: ServiceDep, request: Request) -> Response:
    """One model, or adapter, by its name."""
    if service.lifecycle is not None:
        service = request.app.state.services.find(model_id)
    service.check_model(model_id)
    return json_response(_describe(service, model_id))


def _describe(service: Service, name: str) -> ServedModel:
    ready = service.engine.ready
    return ServedModel(
        id=name,
        created=service.created,
        max_model_len=ready.max_model_len if ready else None,
        tasks=service.tasks,
        parent=service.model_name if service.adapter_of(name) else None,
        input_modalities=service.reads,
        state=UNSET if service.lifecycle is None else service.state,
    )
