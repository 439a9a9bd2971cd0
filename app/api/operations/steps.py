"""GET /v1/engine/steps"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...core.step_report import StepReport
from ...errors import ForbiddenError
from ..deps import ServiceDep
from ..edge.answer import AnswerBody, encode_json
from ..edge.document import ANY, answers
from ..edge.sse import EventStream
from ..service import Service

router = APIRouter()


class Step(StepReport, AnswerBody):
    """What the batch looks like after a step. Rows and tenants are lists of their fields, in order."""


def _check_may_operate(request: Request) -> None:
    if not request.scope["request_log"].tenant.may_operate:
        raise ForbiddenError("the owner of this key may not watch the batch (may_operate)")


@router.get(
    "/v1/engine/steps",
    responses=answers(None, (*ANY, 403), events=(Step,)),
    response_class=Response,
    dependencies=[Depends(_check_may_operate)],
)
async def watch_steps(service: ServiceDep) -> Response:
    """What the running batch looks like, as server-sent events: at most ten a second, and only the latest step."""
    return EventStream(_events(service), lambda: None)


async def _events(service: Service) -> AsyncGenerator[bytes, None]:
    async with aclosing(service.engine.step_reports()) as reports:
        async for report in reports:
            yield b"data: " + encode_json(report) + b"\n\n"
