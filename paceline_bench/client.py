"""Sends one streamed request, and records what arrived when."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Self

import httpx
import msgspec

from .errors import BenchError
from .sse import EventParser

_CONNECT_TIMEOUT = 10.0  # seconds


@dataclass
class Record:
    """The record of one request. Times are `perf_counter` seconds."""

    start: float
    """Just before the request is written, and before a connection is opened where none is idle."""
    delay: float = 0.0
    """Seconds by which the request started later than the open loop had planned."""
    event_times: list[float] = field(default_factory=list)
    """Arrivals of the token events: those with a `text` field (completions) or some content (chat)."""
    prompt_tokens: int | None = None
    """This and the next are the server's usage; None if the server sent none."""
    completion_tokens: int | None = None
    cached_tokens: int = 0
    error: str | None = None
    """Why the request failed; None if it did not fail."""

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer; its events if the server sent no usage."""
        return len(self.event_times) if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds, of a request that did not fail."""
        return self.event_times[0] - self.start


class _PromptTokensDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptTokensDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_token(self) -> bool:
        """Whether the event has a token. Its text may be empty (half a character). A chat's first delta is a role."""
        if (delta := self.delta) is not None:
            return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)
        return self.text is not None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    object: str = ""
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Server:
    """The server to measure; use as an async context manager.

    Each request in flight has an HTTP client of its own. One client shared by 64 requests lets some of them wait in
    its connection pool for seconds, and that wait would be measured as the server's.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """`url`: the base URL, with or without `/v1`. `timeout`: the longest silence of a request, in seconds."""
        base = url.rstrip("/").removesuffix("/v1")
        self.url = base if "://" in base else f"http://{base}"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout, connect=_CONNECT_TIMEOUT)
        self._tls = httpx.create_ssl_context()  # made once, because it takes tens of milliseconds
        self._idle: list[httpx.AsyncClient] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that no other request uses; its connection is kept for the next one."""
        http = self._idle.pop() if self._idle else await self._stack.enter_async_context(self._new_client())
        try:
            yield http
        finally:
            self._idle.append(http)

    def _new_client(self) -> httpx.AsyncClient:
        # A proxy from the environment is ignored, because it would be measured, too.
        return httpx.AsyncClient(
            base_url=self.url, headers=self._headers, timeout=self._timeout, verify=self._tls, trust_env=False
        )

    async def first_model(self) -> str | None:
        """The first model that the server names; None if it has no such list.

        Raises BenchError if the server cannot be reached.
        """
        try:
            async with self.client() as http:
                answer = await http.get("/v1/models")
            return str(answer.raise_for_status().json()["data"][0]["id"])
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise BenchError(f"cannot reach {self.url}: {_text(error)}") from error
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
            return None


async def stream_request(
    http: httpx.AsyncClient, path: str, body: bytes, on_token_event: Callable[[], None] = lambda: None
) -> Record:
    """Send one streaming request and read its answer to the end. A failure is in the record, not an exception."""
    record = Record(start=perf_counter())
    try:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        async with http.stream("POST", path, content=body, headers=headers) as answer:
            if answer.status_code == httpx.codes.OK:
                await _read(answer, record, on_token_event)
            else:
                text = (await answer.aread()).decode(errors="replace")
                record.error = f"HTTP {answer.status_code}: {text[:300]}"
    except (httpx.RequestError, httpx.InvalidURL) as error:
        record.error = _text(error)
    except msgspec.MsgspecError as error:
        record.error = f"an event of the stream is not as OpenAI's: {error}"
    return record


async def _read(answer: httpx.Response, record: Record, on_token_event: Callable[[], None]) -> None:
    """Read an answer's events into the record."""
    parser = EventParser()
    complete = False
    async for chunk in answer.aiter_bytes():
        now = perf_counter()
        for data in parser.feed(chunk):
            if data == b"[DONE]":
                complete = True
                continue
            event = _decode(data)
            if event.error is not None or event.object == "error":
                record.error = record.error or data.decode(errors="replace")[:300]
            if event.usage is not None:
                _note_usage(event.usage, record)
            for choice in event.choices[:1]:  # n is 1
                complete = complete or choice.finish_reason is not None
                if choice.has_token():
                    record.event_times.append(now)
                    on_token_event()
    if record.error is None and not (complete and record.event_times):
        record.error = "the stream ended without a token" if complete else "the stream ended early"


def _note_usage(usage: _Usage, record: Record) -> None:
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
    details = usage.prompt_tokens_details
    record.cached_tokens = (details.cached_tokens or 0) if details else 0


def _text(error: Exception) -> str:
    """The text of an exception for people; many of httpx's exceptions have no text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
