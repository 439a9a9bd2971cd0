"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from pydantic import ConfigDict, Field
from starlette.responses import Response

from ...errors import ForbiddenError, InvalidRequestError, NotFoundError
from ...settings import ADAPTER_NAME
from ..deps import ServiceDep, body_of
from ..edge.body import Label, RequestBody, body_schema, hints
from ..edge.document import READS_BODY, answers

router = APIRouter()

_ANSWERS = answers(None, (*READS_BODY, 403))


class LoadAdapterRequest(RequestBody):
    """Load a LoRA adapter."""

    model_config = ConfigDict(json_schema_extra={"example": {"lora_name": "sql", "lora_path": "/models/sql-lora"}})

    hints = hints("base_model_name")
    unsupported = {"load_inplace": (False,)}  # noqa: RUF012 - declared as a class variable
    lora_name: str = Field(pattern=ADAPTER_NAME, description="what requests choose it by, as their model")
    lora_path: Label = Field(description="a folder of the server, as PEFT writes it: an absolute path")


class UnloadAdapterRequest(RequestBody):
    """Unload a LoRA adapter."""

    model_config = ConfigDict(json_schema_extra={"example": {"lora_name": "sql"}})

    hints = hints("lora_int_id")
    lora_name: Label


def _check_allowed(request: Request, service: ServiceDep) -> None:
    if not service.settings.lora_loading:
        raise ForbiddenError("this server loads no adapters over HTTP (lora_loading)")
    if not request.scope["request_log"].tenant.may_operate:
        raise ForbiddenError("the owner of this key may not load adapters (may_operate)")


ALLOWED = [Depends(_check_allowed)]


@router.post(
    "/v1/load_lora_adapter",
    openapi_extra=body_schema(LoadAdapterRequest),
    responses=_ANSWERS,
    response_class=PlainTextResponse,
    dependencies=ALLOWED,
)
async def load_adapter(
    body: Annotated[LoadAdapterRequest, Depends(body_of(LoadAdapterRequest))], service: ServiceDep
) -> Response:
    """Load a LoRA adapter, as vLLM does. Requests of all API workers can have it then, also after an engine's death."""
    name, path = body.lora_name, Path(body.lora_path)
    if service.serves(name):
        raise InvalidRequestError(f"lora_name: '{name}' is served already", "lora_name")
    if not path.is_absolute():
        raise InvalidRequestError("lora_path: an absolute path is needed", "lora_path")
    await service.engine.load_adapter(name, str(path))
    return _success(name, "added")


@router.post(
    "/v1/unload_lora_adapter",
    openapi_extra=body_schema(UnloadAdapterRequest),
    responses=_ANSWERS,
    response_class=PlainTextResponse,
    dependencies=ALLOWED,
)
async def unload_adapter(
    body: Annotated[UnloadAdapterRequest, Depends(body_of(UnloadAdapterRequest))], service: ServiceDep
) -> Response:
    """Unload a LoRA adapter. Requests that have it go on to their end."""
    name = body.lora_name
    if name not in service.engine.adapters:
        raise NotFoundError(f"lora_name: there is no adapter '{name}'", "lora_name")
    await service.engine.unload_adapter(name)
    return _success(name, "removed")


def _success(name: str, done: str) -> Response:
    return PlainTextResponse(f"Success: LoRA adapter '{name}' {done} successfully.")
