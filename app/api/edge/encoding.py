"""Compressed bodies of requests, unpacked while they are read."""

import asyncio
import zlib

from starlette.types import Message, Receive, Scope

from ...errors import InvalidRequestError, UnsupportedEncodingError

_GZIP = 16 + zlib.MAX_WBITS
"""For zlib: a gzip header and trailer, and any window."""


def decoded(receive: Receive, scope: Scope, limit: int) -> Receive:
    """A `receive` that gives the body as it was before its Content-Encoding.

    It unpacks no more than one byte beyond `limit`; its caller refuses a body of that size. Raises
    UnsupportedEncodingError, when the body is read, for everything but gzip.
    """
    encoding = b",".join(value for name, value in scope["headers"] if name == b"content-encoding").strip().lower()
    if encoding in (b"", b"identity"):
        return receive
    if encoding in (b"gzip", b"x-gzip"):
        return _Gunzipped(receive, limit)

    async def refuse() -> Message:
        name = encoding.decode("latin-1")
        raise UnsupportedEncodingError(f"Content-Encoding: {name} is not read, only gzip", "Content-Encoding")

    return refuse


class _Gunzipped:
    """A `receive` that unpacks a body of one gzip member."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._room = limit + 1
        self._unzip = zlib.decompressobj(_GZIP)

    async def __call__(self) -> Message:
        """See ASGI. Raises InvalidRequestError if the body is not gzip."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        # In a thread, because a few bytes may become as many as a whole body may have.
        body = await asyncio.to_thread(self._unpack, message.get("body", b""))
        if not message.get("more_body") and not self._unzip.eof and self._room:
            raise InvalidRequestError("Content-Encoding: the body's gzip data is cut off", "Content-Encoding")
        return {**message, "body": body}

    def _unpack(self, packed: bytes) -> bytes:
        if not self._room:
            return b""
        try:
            body = self._unzip.decompress(packed, self._room)
        except zlib.error as error:
            raise InvalidRequestError(f"Content-Encoding: the body is not gzip: {error}", "Content-Encoding") from None
        if self._unzip.unused_data:
            raise InvalidRequestError("Content-Encoding: there is more than one gzip member", "Content-Encoding")
        self._room -= len(body)
        return body
