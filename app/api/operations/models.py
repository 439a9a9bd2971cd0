"""GET /v1/models and /v1/models/{id}"""

from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

from ..deps import ServiceDep
from ..edge.answer import AnswerBody, json_response
from ..edge.document import ANY, answers
from ..service import Service

router = APIRouter()


class ServedModel(AnswerBody, kw_only=True):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["paceline"] = "paceline"
    max_model_len: int | None
    """Null while the model is loading."""


class ServedModels(AnswerBody, kw_only=True):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


@router.get("/v1/models", responses=answers(ServedModels))
async def list_models(service: ServiceDep) -> Response:
    """The one model that is served here."""
    return json_response(ServedModels(data=[_describe(service)]))


@router.get("/v1/models/{model_id:path}", responses=answers(ServedModel, (*ANY, 404)))
async def get_model(model_id: str, service: ServiceDep) -> Response:
    """One model by its name."""
    service.check_model(model_id)
    return json_response(_describe(service))


def _describe(service: Service) -> ServedModel:
    longest = service.engine.ready.max_model_len if service.engine.ready else None
    return ServedModel(id=service.model_name, created=service.created, max_model_len=longest)
