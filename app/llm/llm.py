"""`LLM` and `AsyncLLM`: a model in a Python program, without a server.

The same service as `paceline serve` runs behind them, with the same settings: an engine in a process of its own, its
scheduler, and the text side in a thread of the program. See docs/python.md.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequestError
from ..settings import load_settings
from .calls import Calls, Done
from .host import Host
from .progress import progress_line
from .results import Classification, Piece, Ranked, Result

T = TypeVar("T")
Prompt = str | list[int]
"""A text, or its token ids."""
Messages = list[dict[str, Any]]
"""A chat, in the form of OpenAI's API."""


class SamplingParams(dict[str, Any]):
    """How texts are generated, for several calls: `SamplingParams(temperature=0, max_tokens=64)`.

    Its names are the fields of /v1/completions and /v1/chat/completions (docs/api.md#sampling).
    """


def _host(model: str | None, settings: dict[str, Any]) -> Host:
    """Raises StartupError for wrong settings."""
    return Host(load_settings(model=model, **{"log_level": "warning", **settings}))


def _prompts(given: Prompt | Iterable[Prompt], name: str = "prompts") -> list[Any]:
    """`name`: of the argument. Raises InvalidRequestError."""
    several = _listed(given, name, "a text, token ids, or several of these")
    return [several] if several and isinstance(several[0], int) else several


def _chats(given: Messages | Iterable[Messages]) -> list[Any]:
    several = _listed(given, "messages", "a list of messages, or several of these")
    return [several] if several and isinstance(several[0], dict) else several


def _listed(given: Any, name: str, expected: str) -> list[Any]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise InvalidRequestError(f"{name}: {expected} should be given, and no {type(given).__name__}", name)
    return list(given)


def _fields(sampling: Mapping[str, Any] | None, others: Mapping[str, Any]) -> dict[str, Any]:
    return {**(sampling or {}), **others}


class LLM:
    """A model. It is loaded when the object is made, and let go by `close`, `with`, or the end of the program.

    All methods raise `ApiError`: what HTTP would answer. They may be called by several threads at once; their prompts
    share the engine's batch. Ctrl-C ends a call, and not the model.
    """

    def __init__(self, model: str | None = None, *, progress: bool = True, **settings: Any) -> None:
        """`model`: a folder, a GGUF file, a hub id, or "embedded", which it is where neither the environment nor the
        configuration file names another. `progress`: show how many prompts are done.

        `settings`: those of docs/configuration.md. Raises StartupError if the model cannot be loaded.
        """
        self._progress = progress
        self._host = _host(model, settings)
        self._close = weakref.finalize(self, self._host.close)
        try:
            self._calls = Calls(self._host.started.result())
        except BaseException:
            self.close()
            raise

    @property
    def model_name(self) -> str:
        """The name of the model."""
        return self._calls.service.model_name

    @property
    def has_chat_template(self) -> bool:
        """Whether the model answers chats. One that does not continues texts."""
        return bool(self._calls.service.chat_template.source)

    def generate(
        self, prompts: Prompt | Iterable[Prompt], sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> list[Result]:
        """Continue one prompt or several: a result for each, in their order.

        `sampling` and `fields` are the fields of /v1/completions, such as `temperature=0, max_tokens=64, n=2`.
        """
        given, asked = _prompts(prompts), _fields(sampling, fields)
        return self._show("generating", len(given), lambda done: self._calls.generate(given, asked, done))

    def chat(
        self, messages: Messages | Iterable[Messages], sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> list[Result]:
        """Answer one chat or several: a result for each, in their order.

        `sampling` and `fields` are the fields of /v1/chat/completions, such as `temperature=0, tools=[...]`.
        """
        given, asked = _chats(messages), _fields(sampling, fields)
        return self._show("answering", len(given), lambda done: self._calls.chat(given, asked, done))

    def stream(
        self, prompt: Prompt, sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> Generator[Piece, None, None]:
        """Continue one prompt: the pieces of the text as they come."""
        return self._pieces(self._calls.stream(prompt, _fields(sampling, fields)))

    def stream_chat(
        self, messages: Messages, sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> Generator[Piece, None, None]:
        """Answer one chat: the pieces of the answer as they come."""
        return self._pieces(self._calls.stream_chat(messages, _fields(sampling, fields)))

    def embed(self, texts: str | Iterable[str], **fields: Any) -> NDArray[np.float32]:
        """The vectors of texts: [texts, dimensions]. `fields`: of /v1/embeddings, such as `dimensions=256`."""
        given = _prompts(texts, "texts")
        return self._show("embedding", len(given), lambda done: self._calls.embed(given, fields, done))

    def classify(self, texts: str | Iterable[str], **fields: Any) -> list[Classification]:
        """The labels of texts. `fields`: of /v1/classify."""
        given = _prompts(texts, "texts")
        return self._show("classifying", len(given), lambda done: self._calls.classify(given, fields, done))

    def score(self, text_1: str | list[str], text_2: str | list[str], **fields: Any) -> list[float]:
        """How similar texts are, or how well the second answers the first. `fields`: of /v1/score."""
        return self._host.run(self._calls.score(text_1, text_2, fields))

    def rerank(self, query: str, documents: list[str], **fields: Any) -> list[Ranked]:
        """Documents by how well they answer the query, the best first. `fields`: of /v1/rerank, such as `top_n=3`."""
        return self._host.run(self._calls.rerank(query, documents, fields))

    def _show(self, what: str, count: int, work: Callable[[Done], Coroutine[Any, Any, T]]) -> T:
        with progress_line(what, count, self._progress) as done:
            return self._host.run(work(done))

    def _pieces(self, given: AsyncGenerator[Piece, None]) -> Generator[Piece, None, None]:
        pieces = _Pieces(given)
        try:
            while (piece := self._host.run(pieces.next())) is not None:
                yield piece
        finally:
            if self._close.alive:
                self._host.run(pieces.close())

    def close(self) -> None:
        """Let the model go. A second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncLLM:
    """`LLM` for asyncio, in any event loop. The model is loaded while others run; the first call waits for it.

    Cancelling a call, or closing a stream, ends its work.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """See `LLM`. Raises StartupError for wrong settings; `ready` and the first call do so for a broken model."""
        self._host = _host(model, settings)
        self._close = weakref.finalize(self, self._host.close)
        self._calls: Calls | None = None

    async def ready(self) -> None:
        """Wait until the model is loaded. Raises StartupError if it cannot be."""
        await self._use()

    async def _use(self) -> Calls:
        app = await asyncio.shield(asyncio.wrap_future(self._host.started))
        self._calls = self._calls or Calls(app)
        return self._calls

    async def generate(
        self, prompts: Prompt | Iterable[Prompt], sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> list[Result]:
        """See `LLM.generate`."""
        calls = await self._use()
        return await self._wait(calls.generate(_prompts(prompts), _fields(sampling, fields), _unseen))

    async def chat(
        self, messages: Messages | Iterable[Messages], sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> list[Result]:
        """See `LLM.chat`."""
        calls = await self._use()
        return await self._wait(calls.chat(_chats(messages), _fields(sampling, fields), _unseen))

    async def stream(
        self, prompt: Prompt, sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> AsyncGenerator[Piece, None]:
        """See `LLM.stream`."""
        calls = await self._use()
        async with aclosing(self._pieces(calls.stream(prompt, _fields(sampling, fields)))) as pieces:
            async for piece in pieces:
                yield piece

    async def stream_chat(
        self, messages: Messages, sampling: Mapping[str, Any] | None = None, **fields: Any
    ) -> AsyncGenerator[Piece, None]:
        """See `LLM.stream_chat`."""
        calls = await self._use()
        async with aclosing(self._pieces(calls.stream_chat(messages, _fields(sampling, fields)))) as pieces:
            async for piece in pieces:
                yield piece

    async def embed(self, texts: str | Iterable[str], **fields: Any) -> NDArray[np.float32]:
        """See `LLM.embed`."""
        return await self._wait((await self._use()).embed(_prompts(texts, "texts"), fields, _unseen))

    async def classify(self, texts: str | Iterable[str], **fields: Any) -> list[Classification]:
        """See `LLM.classify`."""
        return await self._wait((await self._use()).classify(_prompts(texts, "texts"), fields, _unseen))

    async def score(self, text_1: str | list[str], text_2: str | list[str], **fields: Any) -> list[float]:
        """See `LLM.score`."""
        return await self._wait((await self._use()).score(text_1, text_2, fields))

    async def rerank(self, query: str, documents: list[str], **fields: Any) -> list[Ranked]:
        """See `LLM.rerank`."""
        return await self._wait((await self._use()).rerank(query, documents, fields))

    async def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._host.begin(work))

    async def _pieces(self, given: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        pieces = _Pieces(given)
        try:
            while (piece := await self._wait(pieces.next())) is not None:
                yield piece
        finally:
            if self._close.alive:
                await self._wait(pieces.close())

    async def close(self) -> None:
        """Let the model go, while others run. A second call does nothing."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _unseen(_num_tokens: int) -> None:
    """Shows nothing."""


class _Pieces:
    """A stream of the service's event loop, read from outside of it.

    Who cancels `next` out there is not told when it has ended here, so `close` waits for it.
    """

    def __init__(self, pieces: AsyncGenerator[Piece, None]) -> None:
        self._pieces = pieces
        self._turn = asyncio.Lock()

    async def next(self) -> Piece | None:
        """The next piece; None behind the last one."""
        async with self._turn:
            return await anext(self._pieces, None)

    async def close(self) -> None:
        """End the work."""
        async with self._turn:
            await self._pieces.aclose()
