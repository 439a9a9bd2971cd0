"""Compressed bodies of requests, unpacked while they are read."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Protocol

from starlette.types import Message, Receive, Scope

from ...errors import InvalidRequestError, UnsupportedEncodingError

_GZIP = 16 + zlib.MAX_WBITS
"""For zlib: a gzip header and trailer, and any window."""
_ZSTD_WINDOW_LOG = 23
"""The largest window that the encoding may have: 8 MiB (RFC 9659). The library takes so much memory for a body."""


class _Decompressor(Protocol):
    """What zlib and zstd have in common. It ends with the first member, which zstd calls a frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


def decoded(receive: Receive, scope: Scope, limit: int) -> Receive:
    """A `receive` that gives the body as it was before its Content-Encoding.

    It unpacks no more than one byte beyond `limit`; its caller refuses a body of that size. Raises
    UnsupportedEncodingError, when the body is read, for everything but gzip and zstd.
    """
    encoding = b",".join(value for name, value in scope["headers"] if name == b"content-encoding").strip().lower()
    if encoding in (b"", b"identity"):
        return receive
    if encoding in (b"gzip", b"x-gzip"):
        return _Unpacked(receive, limit, "gzip", lambda: (zlib.decompressobj(_GZIP), zlib.error))
    if encoding == b"zstd":
        return _Unpacked(receive, limit, "zstd", _unzstd)

    async def refuse() -> Message:
        name = encoding.decode("latin-1")
        raise UnsupportedEncodingError(f"Content-Encoding: {name} is not read, only gzip and zstd", "Content-Encoding")

    return refuse


def _unzstd() -> tuple[_Decompressor, type[Exception]]:
    """The library is imported with the first body that needs it."""
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

    return ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}), ZstdError


class _Unpacked:
    """A `receive` that unpacks a body of one member."""

    def __init__(
        self, receive: Receive, limit: int, name: str, make: Callable[[], tuple[_Decompressor, type[Exception]]]
    ) -> None:
        """`make` gives a decompressor and the kind of its errors."""
        self._receive = receive
        self._room = limit + 1
        self._name = name
        self._decompressor, self._error = make()

    async def __call__(self) -> Message:
        """See ASGI. Raises InvalidRequestError if the body is not compressed as it says."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        # In a thread, because a few bytes may become as many as a whole body may have.
        body = await asyncio.to_thread(self._unpack, message.get("body", b""))
        if not message.get("more_body") and not self._decompressor.eof and self._room:
            raise self._refusal(f"the body's {self._name} data is cut off")
        return {**message, "body": body}

    def _unpack(self, packed: bytes) -> bytes:
        if not self._room or not packed:
            return b""
        if self._decompressor.eof:
            raise self._refusal(f"there is more than one {self._name} member")
        try:
            body = self._decompressor.decompress(packed, self._room)
        except self._error as error:
            raise self._refusal(f"the body is not {self._name}: {error}") from None
        if self._decompressor.unused_data:
            raise self._refusal(f"there is more than one {self._name} member")
        self._room -= len(body)
        return body

    @staticmethod
    def _refusal(reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"Content-Encoding: {reason}", "Content-Encoding")
