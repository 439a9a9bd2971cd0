"""Generations of one call, when the engine dies between two of them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.edge.request_log import RequestLog, Usage
from app.api.generation import in_turn
from app.errors import EngineUnavailableError


class Engine:
    def __init__(self) -> None:
        self.is_there = asyncio.Event()
        self.asked = asyncio.Event()

    async def wait_until_ready(self) -> None:
        self.asked.set()
        await self.is_there.wait()


async def test_what_is_done_is_not_lost_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()

    class Generation:
        usage = Usage()

        def __init__(self, *_arguments: Any) -> None:
            if not engine.is_there.is_set():
                raise EngineUnavailableError("the model is still loading")

        async def deltas(self) -> Any:
            yield 0, SimpleNamespace(token_ids=[7], vector=b"", logprobs=[])

    monkeypatch.setattr(in_turn, "Generation", Generation)
    service: Any = SimpleNamespace(engine=engine, ready=lambda: SimpleNamespace(max_model_len=8))
    turns, choices = in_turn.InTurn(service, 0, RequestLog("id", 0.0, record=lambda _: None)), [Any]
    with pytest.raises(EngineUnavailableError):  # nothing is done yet
        await turns.run(choices)  # type: ignore[arg-type]
    engine.is_there.set()
    assert [one.token_ids for one in await turns.run(choices)] == [[7]]  # type: ignore[arg-type]
    engine.is_there.clear()
    again = asyncio.create_task(turns.run(choices))  # type: ignore[arg-type]
    await engine.asked.wait()
    assert not again.done()
    engine.is_there.set()
    assert [one.token_ids for one in await again] == [[7]]
