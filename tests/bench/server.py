"""A small streaming server over a real socket, in a thread of its own, with faults on demand."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.patience import PATIENCE

TOKEN_SECONDS = 0.001
"""The server waits this long for each token of the prompt, and again for each of the answer."""

Send = Callable[[bytes], Awaitable[None]]


@dataclass
class StreamServer:
    """Speaks enough of OpenAI's API; use as a context manager."""

    cut: int = 1 << 20
    """Largest number of bytes sent at once."""
    refuse_every: int = 0
    """Answer each so many-th request with HTTP 429."""
    break_every: int = 0
    """Drop the connection in the middle of each so many-th answer."""
    error_every: int = 0
    """Send an error event instead of the second half of each so many-th answer."""
    hold_after: int | None = None
    """Requests beyond this number never get an answer."""
    gather: int = 0
    """Requests wait until so many are open: what a closed loop must reach, and may not exceed."""
    usage: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_open: int = 0
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each of those."""

    def __enter__(self) -> "StreamServer":
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(PATIENCE), "the server did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._open, self._gathered = 0, asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._connection(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                pass
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line), 0)
            body = await reader.readexactly(length)
            if head.startswith("get /v1/models "):
                await self._plain(writer, 200, {"object": "list", "data": [{"id": "tiny"}]})
            elif head.startswith("post /v1/"):
                await self._generate(writer, json.loads(body), chat="/chat/" in head)
            else:
                await self._plain(writer, 404, {})

    async def _plain(self, writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def _generate(self, writer: asyncio.StreamWriter, body: dict[str, Any], chat: bool) -> None:
        self.bodies.append(body)
        number = len(self.bodies)
        if self.hold_after is not None and number > self.hold_after:
            self.held.release()
            await self._stop.wait()
        if self.refuse_every and number % self.refuse_every == 0:
            return await self._plain(writer, 429, {"error": {"message": "queue full"}})
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        if self._open >= self.gather:
            self._gathered.set()
        await self._gathered.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            await self._answer(self._sender(writer), body, chat, number)
            writer.write(b"0\r\n\r\n")
        finally:
            self._open -= 1
        return None

    def _sender(self, writer: asyncio.StreamWriter) -> Send:
        async def send(data: bytes) -> None:
            for begin in range(0, len(data), self.cut):
                piece = data[begin : begin + self.cut]
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()

        return send

    async def _answer(self, send: Send, body: dict[str, Any], chat: bool, number: int) -> None:
        prompt_tokens = len(body["messages"][0]["content"].split() if chat else body["prompt"])
        count = body["max_tokens"]
        await send(b": keep-alive\r\n\r\n")
        if chat:
            await send(_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        await asyncio.sleep(TOKEN_SECONDS * prompt_tokens)
        for i in range(count):
            if i == count // 2 and self.break_every and number % self.break_every == 0:
                raise ConnectionError
            if i == count // 2 and self.error_every and number % self.error_every == 0:
                await send(_event({"error": {"message": "the engine died"}}))
                break
            await asyncio.sleep(TOKEN_SECONDS)
            choice = {"delta": {"content": "é "}} if chat else {"text": "é "}
            await send(_event({"choices": [{**choice, "finish_reason": "length" if i == count - 1 else None}]}))
        if self.usage:
            details = {"cached_tokens": 3}
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "prompt_tokens_details": details}
            await send(_event({"choices": [], "usage": usage}))
        await send(b"data: [DONE]\n\n")


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
