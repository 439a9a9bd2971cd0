"""GET /v1/models and /v1/models/{id}"""

from typing import Any

from fastapi import APIRouter

from app.api.deps import ServiceDep
from app.api.edge.document import answers
from app.api.operations.answers import ServedModel, ServedModels
from app.api.service import Service

router = APIRouter()


@router.get("/v1/models", response_model=ServedModels)
async def list_models(service: ServiceDep) -> dict[str, Any]:
    """The one model that is served here."""
    return {"object": "list", "data": [_describe(service)]}


@router.get("/v1/models/{model_id:path}", response_model=ServedModel, responses=answers(errors=(404,)))
async def get_model(model_id: str, service: ServiceDep) -> dict[str, Any]:
    """One model by its name."""
    service.check_model(model_id)
    return _describe(service)


def _describe(service: Service) -> dict[str, Any]:
    ready = service.engine.ready
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "paceline",
        "max_model_len": ready.max_model_len if ready else None,
    }
