"""How batches wait for several models, with the real supervisor of models and engines that only count."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from app.api import service
from app.api.batches import run, runner
from app.api.batches.lines import Line
from app.api.batches.objects import BatchObject, RequestCounts
from app.api.batches.run import grouped, run_lines
from app.api.batches.store import BatchStore, new_batch_id
from app.api.edge.inside import Inside
from app.api.service import Service
from app.api.services import Services
from app.core import lifecycle
from app.core.lifecycle import Lifecycle
from app.settings import Settings
from app.supervisor import models
from app.supervisor.child import ChildLostError
from app.supervisor.folder import PrivateFolder
from app.supervisor.models import ModelProcesses
from app.tenants import EVERYBODY, Tenant
from tests.patience import PATIENCE

_SLOWLY = 20
"""Looks of the supervisor until an engine has loaded its model, or has not been able to."""


class Model:
    """One of several models, as an API worker sees it."""

    def __init__(self, name: str, address: str) -> None:
        self.model_name, self.settings, self.lifecycle = name, SimpleNamespace(lora={}), Lifecycle(address)
        self.engine = SimpleNamespace(ready=None, adapters={}, failure=None, wait_until_ready=self._wait)
        self.loaded = asyncio.Event()

    async def _wait(self) -> None:
        await self.loaded.wait()
        self.engine.ready = SimpleNamespace(max_num_seqs=8)

    def serves(self, name: str) -> bool:
        return name == self.model_name

    state, ready, look = Service.state, Service.ready, Service.look


class House:
    """The models of a service, and what becomes of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.broken: set[str] = set()
        self.starts: list[str] = []
        self.loading: set[str] = set()
        self.most_loading = 0
        monkeypatch.setattr(models, "EngineProcess", self._engine)
        settings = Settings(models=dict.fromkeys(names, "embedded"), load_models="asked")
        self._processes = ModelProcesses(settings, dict.fromkeys(names, Path()))
        told = self._processes.arguments
        self.models = {name: Model(name, address) for name, address in zip(told[::3], told[1::3], strict=True)}
        state = SimpleNamespace(services=Services(cast(list[Service], [*self.models.values()])))
        state.drain = SimpleNamespace(has_begun=False)
        state.admission = SimpleNamespace(tenant_named=lambda _name: EVERYBODY)
        self.app: Any = SimpleNamespace(state=state)

    def _engine(self, _settings: Settings, _model: Path, _folder: PrivateFolder, name: str) -> Any:
        looks = iter(range(_SLOWLY))
        engine = SimpleNamespace(is_ready=False, end=lambda: None, stop=lambda: None)
        self.starts.append(name)
        self.loading.add(name)
        self.most_loading = max(self.most_loading, len(self.loading))

        def check() -> None:
            if next(looks, None) is None:
                self.loading.discard(name)
                if name in self.broken:
                    raise ChildLostError("it is broken", 1)
                engine.is_ready = True
                self.models[name].loaded.set()

        engine.check = check
        return engine

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        async def supervise() -> None:
            while True:
                self._processes.check()
                await asyncio.sleep(0.001)

        task = asyncio.create_task(supervise())
        try:
            async with asyncio.timeout(PATIENCE):
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._processes.stop()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    """All pauses are a hundredth of what they are."""

    def pause_after(failures: int, longest: float) -> float:
        return real(failures, longest) / 100

    real = lifecycle.pause_after
    for module in (lifecycle, models):
        monkeypatch.setattr(module, "pause_after", pause_after)
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.001)
    return House(monkeypatch, "first", "broken", "last")


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.001)


async def test_models_of_batches_are_woken_one_after_the_other(house: House) -> None:
    house.broken.add("broken")
    later: Services = house.app.state.services
    async with house.supervised(), asyncio.TaskGroup() as tasks:
        broken = tasks.create_task(later.wake_for_later(cast(Service, house.models["broken"])))
        await until(lambda: house.starts == ["broken"] * 2)
        for name in ("first", "last", "broken"):  # another batch waits for the broken one, too
            tasks.create_task(later.wake_for_later(cast(Service, house.models[name])))
        await until(lambda: house.models["first"].loaded.is_set() and house.models["last"].loaded.is_set())
        await until(lambda: house.starts.count("broken") == 4)
        assert not broken.done()
        assert house.most_loading == 1
        house.broken.clear()
    assert [house.starts.count(name) for name in ("first", "last", "broken")] == [1, 1, 4]


def test_the_pauses_of_a_model_that_fails_again_and_again_are_bounded(tmp_path: Path) -> None:
    state = Lifecycle(f"ipc://{tmp_path}/engine")
    assert not state.seconds_to_pause(600)
    for failures, seconds in ((1, 1), (2, 2), (5, 16), (10_000, 600)):
        state.set("failed", "no such file", failures)
        assert seconds - 1 < state.seconds_to_pause(600) <= seconds
        assert (state.state, state.reason) == ("failed", "no such file")
    state.set("awake")
    assert not state.seconds_to_pause(600)


async def test_lines_wait_for_their_model_outside_of_its_queue(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that falls asleep in the middle of a batch is woken as at its beginning; what names none wakes none."""
    model = house.models["first"]
    answered: list[tuple[str, bool]] = []

    async def send(_app: Any, _tenant: Tenant, _method: str, _path: str, body: bytes) -> Inside:
        return Inside(200, {}, body)

    def write(line: Line, _answer: Inside) -> None:
        answered.append((line.custom_id, model.engine.ready is not None))

    monkeypatch.setattr(run, "request_inside", send)
    lines = [Line(name, "/v1/completions", {"model": name}) for name in ("first", "nobody", "none")]
    nobodys, firsts = sorted(grouped(house.app, lambda: iter(lines)), key=lambda group: group.service is not None)
    async with house.supervised():
        await run_lines(house.app, EVERYBODY, nobodys, asyncio.Semaphore(), write)
        assert (answered, house.starts) == ([("nobody", False), ("none", False)], [])
        assert model.lifecycle.seconds_unwanted == float("inf")
        await run_lines(house.app, EVERYBODY, firsts, asyncio.Semaphore(), write)
    assert answered[2:] == [("first", True)]


async def test_a_batch_that_waits_for_a_broken_model_does_not_hold_up_the_next(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.broken.add("broken")
    sent: list[str] = []
    in_flight: dict[str, set[str]] = {"first": set(), "broken": set()}
    may_end = asyncio.Event()

    async def send(_app: Any, _tenant: Tenant, _method: str, _path: str, body: bytes) -> Inside:
        asked = msgspec.json.decode(body)
        batch, model = asked["prompt"], asked["model"]
        sent.append(batch + model)
        in_flight[model].add(batch)
        assert in_flight[model] == {batch}  # of a tenant, a model has requests of one batch at a time
        await may_end.wait()
        for _ in range(20):  # others have the time to begin
            await asyncio.sleep(0.001)
        in_flight[model].discard(batch)
        return Inside(200, {}, b"{}")

    monkeypatch.setattr(run, "request_inside", send)
    settings = Settings(batch_folder=tmp_path)
    store = BatchStore(settings)
    folder = store.of(EVERYBODY.name)

    def start(batch: str, *names: str) -> str:
        lines = [
            {"custom_id": f"{at}", "method": "POST", "url": "/v1/completions", "body": {"model": name, "prompt": batch}}
            for at, name in enumerate(names)
        ]
        file = folder.add_file(io.BytesIO(b"\n".join(map(msgspec.json.encode, lines))), batch, "batch")
        made = BatchObject(
            id=new_batch_id(),
            endpoint="/v1/completions",
            input_file_id=file.id,
            completion_window="24h",
            created_at=len(ids),  # the first one is the oldest
            expires_at=int(time.time()) + 1000,
            request_counts=RequestCounts(),
        )
        folder.add_batch(made)
        return made.id

    ids: list[str] = []
    for batch, names in (("a", ["broken", "first"]), ("b", ["broken", "first", "broken"]), ("c", ["first"])):
        ids.append(start(batch, *names))

    def ended() -> list[bool]:
        return [folder.batch(batch_id).status == "completed" for batch_id in ids]

    async with house.supervised():
        task = asyncio.create_task(runner.BatchRunner(house.app, settings, store).run())
        await until(lambda: sent == ["afirst"] and house.starts.count("broken") == 3)
        assert folder.batch(ids[1]).status == "validating"  # something of the first one runs
        may_end.set()
        await until(lambda: ended() == [False, False, True])
        assert sent == ["afirst", "bfirst", "cfirst"]
        ids += [start(batch, "broken") for batch in "defg"]
        begun = runner._MOST_HELD_UP - 2  # beside the first two
        await until(lambda: [folder.batch(one).status for one in ids[3:]].count("in_progress") == begun)
        tries = house.starts.count("broken")
        await until(lambda: house.starts.count("broken") > tries + 1)
        assert [folder.batch(one).status for one in ids[3:]] == ["in_progress"] * begun + ["validating"] * (4 - begun)
        house.broken.clear()
        await until(lambda: all(ended()))
        assert sent[3:] == ["abroken", "bbroken", "bbroken", *(f"{batch}broken" for batch in "defg")]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
