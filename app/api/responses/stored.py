"""What becomes of a response later: GET and DELETE /v1/responses/{id}, its input items, and its end before its time."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from ...errors import InvalidRequestError, NotFoundError
from ..deps import ServiceDep
from ..edge.answer import encode_json, json_response
from ..edge.document import ANY, answers
from ..edge.sse import EventStream
from .deps import BackgroundDep, OwnerDep, StoreDep
from .response import DeletedResponse, InputItems, ResponseEvent, ResponseObject

router = APIRouter()
_NAMED = (*ANY, 404)
_MAX_LIMIT = 100


@router.get("/v1/responses/{response_id}", responses=answers(ResponseObject, _NAMED, events=(ResponseEvent,)))
async def get_response(
    response_id: str,
    service: ServiceDep,
    store: StoreDep,
    background: BackgroundDep,
    owner: OwnerDep,
    stream: Annotated[str, Query(description="true: the events, of a stream in the background")] = "false",
    starting_after: Annotated[str | None, Query(description="the sequence_number of the last event seen")] = None,
) -> Response:
    """A stored response, or one that is generated in the background, as far as it is."""
    running = background.find(owner, response_id)
    body = encode_json(running) if running else store.body(owner, response_id)
    if stream != "true":
        return _stored(body)
    try:
        kept = service.streams.find(owner, response_id)
    except NotFoundError:
        raise InvalidRequestError("stream: events of this response are not kept (any more)", "stream") from None
    num_seen = 0 if starting_after is None else kept.number(starting_after, "starting_after") + 1
    return EventStream(kept.read(num_seen), lambda: None)


@router.delete("/v1/responses/{response_id}", responses=answers(DeletedResponse, _NAMED))
async def delete_response(response_id: str, store: StoreDep, background: BackgroundDep, owner: OwnerDep) -> Response:
    """Delete a stored response. One that is still generated ends."""
    await background.cancel(owner, response_id)
    store.delete(owner, response_id)
    return json_response(DeletedResponse(response_id))


@router.post("/v1/responses/{response_id}/cancel", responses=answers(ResponseObject, _NAMED))
async def cancel_response(response_id: str, store: StoreDep, background: BackgroundDep, owner: OwnerDep) -> Response:
    """End a response that is generated in the background. One that has ended stays as it is."""
    await background.cancel(owner, response_id)
    body = store.body(owner, response_id)
    if not msgspec.json.decode(body)["background"]:
        raise InvalidRequestError("response_id: only a response in the background can be cancelled", "response_id")
    return _stored(body)


@router.get("/v1/responses/{response_id}/input_items", responses=answers(InputItems, _NAMED))
async def list_input_items(
    response_id: str,
    store: StoreDep,
    owner: OwnerDep,
    after: Annotated[str | None, Query(description="the id of the item before the first one")] = None,
    limit: Annotated[str, Query(description=f"1 to {_MAX_LIMIT}")] = "20",
    order: Annotated[str, Query(description="asc, or desc: the latest first")] = "desc",
) -> Response:
    """The items that a stored response answers: its own input, and the conversation that it continues."""
    items = store.items(owner, response_id)
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order: asc or desc is expected", "order")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:4]) <= _MAX_LIMIT):
        raise InvalidRequestError(f"limit: a number from 1 to {_MAX_LIMIT} is expected", "limit")
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise NotFoundError(f"after: the response has no item {after!r:.80}", "after")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + int(limit)]
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return json_response(
        InputItems(data=page, first_id=ends[0], last_id=ends[1], has_more=len(items) > start + len(page))
    )


def _stored(body: bytes) -> Response:
    return Response(body, media_type="application/json")
