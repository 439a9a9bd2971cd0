"""Generations one behind another, of which some find the engine's queue full."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.edge.request_log import Usage
from app.api.generation import in_turn
from app.api.generation.in_turn import InTurn, Written
from app.errors import QueueFullError


def test_only_the_first_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_room = iter([False, True, False, False, True])

    class Generation:
        """The engine's part: one token, if there is room."""

        def __init__(self, *_: Any) -> None:
            if not next(has_room):
                raise QueueFullError("full")
            self.usage = Usage(prompt_tokens=1, completion_tokens=1)

        async def deltas(self) -> AsyncGenerator[tuple[int, Any], None]:
            yield 0, SimpleNamespace(token_ids=[7], logprobs=[SimpleNamespace(logprobs=[-0.5])], vector=b"")

    monkeypatch.setattr(in_turn, "Generation", Generation)
    monkeypatch.setattr(in_turn, "_PAUSE", 0.0)
    service: Any = None
    entry: Any = None
    choice: Any = None
    turns = InTurn(service, 0, entry)
    with pytest.raises(QueueFullError):
        asyncio.run(turns.run([choice]))
    for _ in range(2):
        assert asyncio.run(turns.run([choice])) == [Written([7], [-0.5])]
    assert next(has_room, None) is None
    assert turns.usage.completion_tokens == 2
