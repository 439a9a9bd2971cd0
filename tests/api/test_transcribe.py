"""A transcription whose windows find the engine's queue full."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.audio import transcribe
from app.api.audio.transcribe import Transcription
from app.api.edge.request_log import Usage
from app.core.media import Media
from app.core.sampling import SamplingParams
from app.errors import QueueFullError


def test_only_the_first_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_room = iter([False, True, False, False, True])

    class Generation:
        """The engine's part: one token, if there is room."""

        def __init__(self, *_: Any) -> None:
            if not next(has_room):
                raise QueueFullError("full")
            self.usage = Usage(prompt_tokens=1, completion_tokens=1)

        async def deltas(self) -> AsyncGenerator[tuple[int, Any], None]:
            yield 0, SimpleNamespace(token_ids=[7], logprobs=[SimpleNamespace(logprobs=[-0.5])])

    monkeypatch.setattr(transcribe, "Generation", Generation)
    monkeypatch.setattr(transcribe, "_PAUSE", 0.0)
    monkeypatch.setattr(transcribe, "speech_of", lambda _: (None, SimpleNamespace(tasks={}, languages={})))
    asked: Any = SimpleNamespace(priority=0, language=None)
    service: Any = None
    entry: Any = None
    transcription = Transcription(service, asked, "transcribe", entry)
    source = Media(b"", {}, 1)

    async def run() -> tuple[list[int], list[float]]:
        return await transcription._run([1], source, SamplingParams(max_tokens=1, seed=0))

    with pytest.raises(QueueFullError):
        asyncio.run(run())
    for _ in range(2):
        assert asyncio.run(run()) == ([7], [-0.5])
    assert next(has_room, None) is None
    assert transcription._used.completion_tokens == 2
