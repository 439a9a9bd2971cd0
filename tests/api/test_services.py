"""Which of several models a body names, and how those that a batch is for are woken."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from app.api import services
from app.api.batches import run
from app.api.batches.lines import Line
from app.api.batches.run import grouped, run_lines
from app.api.edge.inside import Inside
from app.api.service import Service
from app.api.services import Services, named
from app.errors import InvalidRequestError
from app.tenants import EVERYBODY, Tenant
from tests.patience import PATIENCE


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", b'{"prompt": ["model", {"model": "no"}], "model": "a"}', "a"),
        ("/v1/completions", b'{"prompt": "a"}', None),
        ("/v1/completions", b'{"model": "a"', None),
        ("/v1/completions", b'{"model": ["a"]}', None),
        ("/v1/completions", b"\xff", None),
        ("/v1/load_lora_adapter", b'{"lora_name": "l", "base_model_name": "a"}', "a"),
        ("/v1/unload_lora_adapter", b'{"lora_name": "l"}', "l"),
    ],
)
def test_json_names_a_model(path: str, body: bytes, name: str | None) -> None:
    assert named(path, "application/json", body) == name


def test_an_adapter_needs_a_model() -> None:
    with pytest.raises(InvalidRequestError, match="base_model_name"):
        named("/v1/load_lora_adapter", "application/json", b'{"lora_name": "l"}')


@pytest.mark.parametrize("fields", [{"model": "a/b"}, {"language": "en", "model": "a/b"}, {"language": "model"}])
def test_a_form_names_a_model(fields: dict[str, str]) -> None:
    request = httpx.Request("POST", "http://a", data=fields, files={"file": ("x.wav", b"RIFF\r\n\r\nmodel")})
    kind, body = request.headers["content-type"], request.read()
    assert named("/v1/audio/transcriptions", kind, body) == fields.get("model")


def test_a_form_names_a_model_behind_all_the_files_that_it_may_have() -> None:
    file = b'--xy\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n'
    body = 8192 * file + b'--xy\r\nContent-Disposition: form-data; name="model"\r\n\r\nsecond\r\n--xy--\r\n'
    assert named("/v1/classify", "Multipart/Form-Data; Boundary=xy", body) == "second"


@pytest.mark.parametrize(
    "body",
    [
        b'--xy\r\nContent-Disposition: form-data; name="file"\r\n\r\n; name="model"\r\n\r\nof the file\r\n--xy--\r\n',
        b'--xy\r\n; name="model"'
        + b"\r\n; name=model" * 100_000,  # a search for a part's end that goes back takes minutes
        b"--xy" * 100_000,
    ],
)
def test_a_form_is_looked_at_where_parts_begin(body: bytes) -> None:
    assert named("/v1/audio/transcriptions", "multipart/form-data; boundary=xy", body) is None


class Model:
    """One of several models, which the supervisor sees when a test says so."""

    def __init__(self, name: str, wants: list[str]) -> None:
        self.model_name, self.settings, self.state = name, SimpleNamespace(lora={}), "asleep"
        self.engine = SimpleNamespace(ready=None, adapters={}, failure=None, wait_until_ready=self._wait)
        self.lifecycle = SimpleNamespace(want=lambda: wants.append(name))
        self._loaded = asyncio.Event()

    async def _wait(self) -> None:
        await self._loaded.wait()

    def serves(self, name: str) -> bool:
        return name == self.model_name

    def load(self) -> None:
        self.state, self.engine.ready = "ready", True
        self._loaded.set()


@pytest.fixture
def wants(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were wanted, the latest last."""
    monkeypatch.setattr(services, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(services, "_SEEN_SECONDS", 0.01)
    return []


async def until_wanted(name: str, wants: list[str]) -> None:
    """Until a model has been wanted a few times more: it is not a matter of one look."""
    before = wants.count(name)
    while wants.count(name) < before + 3:
        await asyncio.sleep(0)


def app_of(*models: Model) -> tuple[Any, Services]:
    several = Services(cast(list[Service], list(models)))
    return SimpleNamespace(state=SimpleNamespace(services=several)), several


async def test_models_of_a_batch_are_woken_one_after_the_other(wants: list[str]) -> None:
    first, broken, last = models = [Model(name, wants) for name in ("first", "broken", "last")]
    _, several = app_of(*models)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        for model in models:
            tasks.create_task(several.wake_for_later(cast(Service, model)))
        await until_wanted("first", wants)
        assert set(wants) == {"first"}  # though it looks asleep until the supervisor has seen it
        broken.state = "failed"
        first.load()
        await until_wanted("last", wants)  # one that cannot be loaded holds up nobody
        assert "broken" in wants
        last.load()
        await until_wanted("broken", wants)
        broken.load()


async def test_lines_wait_for_their_model_outside_of_its_queue(
    wants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that falls asleep in the middle of a batch is woken as at its beginning; what names none wakes none."""
    model = Model("first", wants)
    app, _ = app_of(model)
    answered: list[tuple[str, object]] = []

    async def send(_app: Any, _tenant: Tenant, _method: str, _path: str, body: bytes) -> Inside:
        return Inside(200, {}, body)

    def write(line: Line, _answer: Inside) -> None:
        answered.append((line.custom_id, model.engine.ready))

    monkeypatch.setattr(run, "request_inside", send)
    lines = [Line(name, "/v1/completions", {"model": name}) for name in ("first", "nobody", "none")]
    nobodys, firsts = sorted(grouped(app, lambda: iter(lines)), key=lambda group: group.service is not None)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        await run_lines(app, EVERYBODY, nobodys, asyncio.Semaphore(), write)
        assert (answered, wants) == ([("nobody", None), ("none", None)], [])
        tasks.create_task(run_lines(app, EVERYBODY, firsts, asyncio.Semaphore(), write))
        await until_wanted("first", wants)
        model.load()
    assert answered[2:] == [("first", True)]
