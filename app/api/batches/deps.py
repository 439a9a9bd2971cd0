"""FastAPI dependencies of these routes: the tenant's folder; and the pages of their lists."""

import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple, TypeVar

from fastapi import Depends, Request

from ...errors import InvalidRequestError, NotFoundError
from ..edge.request_log import RequestLog
from .objects import BatchObject, FileObject
from .store import BatchStore, TenantFolder

_NUMBER = re.compile("[1-9][0-9]{0,5}")
Kept = TypeVar("Kept", FileObject, BatchObject)


def _folder(request: Request) -> TenantFolder:
    store: BatchStore = request.app.state.batches
    entry: RequestLog = request.scope["request_log"]
    return store.of(entry.tenant.name)


FolderDep = Annotated[TenantFolder, Depends(_folder)]


class Page(NamedTuple):
    """A part of a list: what of it is shown, the ids at its ends, and whether there is more."""

    data: list[FileObject | BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(items: Sequence[Kept], after: str | None, limit: str, most: int) -> Page:
    """The part behind the item `after`. Raises InvalidRequestError and NotFoundError."""
    if not (_NUMBER.fullmatch(limit) and int(limit) <= most):
        raise InvalidRequestError(f"limit: a number from 1 to {most} is expected", "limit")
    ids: list[str] = [item.id for item in items]
    if after is not None and after not in ids:
        raise NotFoundError(f"after: there is no {after!r:.80} in the list", "after")
    start: int = 0 if after is None else ids.index(after) + 1
    data: list[FileObject | BatchObject] = [*items[start : start + int(limit)]]
    ends: tuple[str | None, str | None] = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data, ends[0], ends[1], len(items) > start + len(data))
