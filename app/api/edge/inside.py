"""Requests that this process makes to its own application. They are served like those of clients."""

import asyncio
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Scope

from ...tenants import Tenant

TENANT = "paceline.tenant"
"""Key of a scope: whose request it is. Servers make the scopes of clients' requests, without this key."""


class Inside(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def request_inside(app: ASGIApp, tenant: Tenant, method: str, path: str, body: bytes) -> Inside:
    """Send a request with a JSON body, and wait for the whole answer. When cancelled, it leaves nothing running."""
    status, headers, pieces = 500, {}, []
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not given:
            await asyncio.Event().wait()  # the client does not disconnect
        return given.pop()

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            pieces.append(message.get("body", b""))

    await app(_scope(tenant, method, path), receive, send)
    return Inside(status, headers, b"".join(pieces))


def _scope(tenant: Tenant, method: str, path: str) -> Scope:
    """See ASGI's specification of HTTP."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        TENANT: tenant,
    }
