"""Generations one behind another, of which some find the engine's queue full, and some no engine."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.api import service
from app.api.edge.request_log import RequestLog, Usage
from app.api.generation import in_turn
from app.api.generation.in_turn import InTurn, Written
from app.api.service import Service
from app.core.lifecycle import Lifecycle
from app.errors import DeadlineError, EngineUnavailableError, QueueFullError


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
    served: Any = SimpleNamespace(ready=lambda: SimpleNamespace(max_model_len=8))
    entry: Any = None
    choice: Any = None
    turns = InTurn(served, 0, entry)
    with pytest.raises(QueueFullError):
        asyncio.run(turns.run([choice]))
    for _ in range(2):
        assert asyncio.run(turns.run([choice])) == [Written([7], [-0.5])]
    assert next(has_room, None) is None
    assert turns.usage.completion_tokens == 2


class Engine:
    def __init__(self) -> None:
        self.is_there = asyncio.Event()
        self.asked = asyncio.Event()

    @property
    def ready(self) -> object:
        return SimpleNamespace(max_model_len=8) if self.is_there.is_set() else None

    async def wait_until_ready(self) -> None:
        self.asked.set()
        await self.is_there.wait()


class Served:
    """A model, which may be one of several."""

    model_name = "chronos"
    ready, look, wait_until_ready, expired = Service.ready, Service.look, Service.wait_until_ready, Service.expired

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.lifecycle: Any = None


async def test_what_is_done_is_not_lost_with_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.001)
    engine = Engine()
    served = Served(engine)

    class Generation:
        usage = Usage()

        def __init__(self, *_arguments: Any) -> None:
            if not engine.is_there.is_set():
                raise EngineUnavailableError("the model is still loading")

        async def deltas(self) -> Any:
            yield 0, SimpleNamespace(token_ids=[7], vector=b"", logprobs=[])

    monkeypatch.setattr(in_turn, "Generation", Generation)
    entry, choices = RequestLog("id", 0.0, record=lambda _: None), [Any]
    engine.is_there.set()
    turns = InTurn(cast(Service, served), 0, entry)
    engine.is_there.clear()
    with pytest.raises(EngineUnavailableError):  # nothing is done yet
        await turns.run(choices)  # type: ignore[arg-type]
    engine.is_there.set()
    assert [one.token_ids for one in await turns.run(choices)] == [[7]]  # type: ignore[arg-type]
    engine.is_there.clear()
    again = asyncio.create_task(turns.run(choices))  # type: ignore[arg-type]
    asked = asyncio.create_task(engine.asked.wait())
    await asyncio.wait((again, asked), return_when=asyncio.FIRST_COMPLETED)
    assert asked.done()
    assert not again.done()
    engine.is_there.set()
    assert [one.token_ids for one in await again] == [[7]]
    engine.is_there.clear()  # for good
    entry.deadline = time.monotonic() + 0.01
    with pytest.raises(DeadlineError):
        await turns.run(choices)  # type: ignore[arg-type]
    served.lifecycle = Lifecycle(f"ipc://{tmp_path}/engine")
    served.lifecycle.set("failed", "no weights")
    with pytest.raises(EngineUnavailableError, match="no weights"):
        await turns.run(choices)  # type: ignore[arg-type]
