"""/v1/files and /v1/batches through OpenAI's client, in front of a fake engine."""

import codecs
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from app.api.batches import run, runner, store
from app.api.batches.lines import ENDPOINTS, Line, check_lines, parse_line, read_lines
from app.core.request import FinishReason
from app.errors import QueueFullError
from tests import web
from tests.api.conftest import MODEL, Server, start_server
from tests.api.fake_engine import say
from tests.patience import PATIENCE, wait_until

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.02)


@contextmanager
def serving(model_folder: Path, folder: Path, **settings: Any) -> Iterator[Server]:
    make = contextmanager(start_server)
    with make(model_folder, batch_folder=folder, **settings) as server:
        yield server


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def line(custom_id: str, url: str = CHATS, **body: Any) -> dict[str, Any]:
    defaults = {CHATS: {"messages": [{"role": "user", "content": custom_id}]}, TEXTS: {"prompt": custom_id}}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**defaults[url], **body}}


def content(*lines: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def start(client: openai.OpenAI, *lines: object, url: str = CHATS, **options: Any) -> str:
    file = client.files.create(file=("requests.jsonl", content(*lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h", **options).id


def wait_for(
    client: openai.OpenAI, batch_id: str, is_so: Callable[[Batch], bool] = lambda b: b.status in ENDED
) -> Batch:
    wait_until(lambda: is_so(client.batches.retrieve(batch_id)))
    return client.batches.retrieve(batch_id)


ENDED = ("completed", "failed", "expired", "cancelled")


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    lines = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    return {one["custom_id"]: one for one in lines}


def test_a_batch_from_its_file_to_its_answers(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path) as server:
        client = client_of(server)
        lines = [line(f"r{number}", model=MODEL, priority=number) for number in range(20)]
        batch_id = start(client, *lines, line("wrong", temperature=9), metadata={"for": "tests"})
        batch = wait_for(client, batch_id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 21, "completed": 20, "failed": 1}
        assert (batch.metadata, batch.endpoint) == ({"for": "tests"}, CHATS)
        assert (
            batch.created_at <= (batch.in_progress_at or 0) <= (batch.finalizing_at or 0) <= (batch.completed_at or 0)
        )
        found = answers(client, batch.output_file_id)
        assert found.keys() == {f"r{number}" for number in range(20)}
        for one in found.values():
            assert (one["error"], one["response"]["status_code"]) == (None, 200)
            assert one["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
        (wrong,) = answers(client, batch.error_file_id).values()
        assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("wrong", 400)
        assert wrong["response"]["body"]["error"]["param"] == "temperature"
        priorities = {server.engine.commands.get_nowait().priority for _ in range(20)}
        assert priorities == {1_000_000 + number for number in range(20)}  # behind all live traffic


def test_a_batch_goes_on_after_a_restart_where_it_was(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path, max_batch_requests=2) as server:
        client = client_of(server)
        server.engine.script = lambda command: (
            say("first")(command) if len(command.prompt_token_ids) < 10 else say("never", None)(command)
        )
        texts = [line(text, TEXTS, max_tokens=9) for text in ("a", "b", "c", "long" * 10, "also" * 10, "d", "e")]
        batch_id = start(client, *texts, url=TEXTS)
        wait_for(client, batch_id, lambda batch: batch.request_counts.completed == 3)  # type: ignore[union-attr]
        wait_until(lambda: server.engine.commands.qsize() == 5)  # two in flight, and no more
        file = next(tmp_path.glob("*/*.output"))
    file.write_bytes(
        file.read_bytes() + b'{"id":"batch_req_0", "custom_id": "d", "resp'
    )  # it was killed while it wrote
    with serving(model_folder, tmp_path) as server:
        client = client_of(server)  # whose engine says something else
        batch = wait_for(client, batch_id)
        assert batch.status == "completed"
        told = {
            one: text["response"]["body"]["choices"][0]["text"]
            for one, text in answers(client, batch.output_file_id).items()
        }
        first, second = ["a", "b", "c"], ["long" * 10, "also" * 10, "d", "e"]
        assert told == dict.fromkeys(first, "first") | dict.fromkeys(second, "Hello")


def test_a_batch_is_cancelled_or_expires(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path, max_batch_requests=1) as server:
        client = client_of(server)
        server.engine.script = lambda command: say(
            "x", None if len(command.prompt_token_ids) > 9 else FinishReason.STOP
        )(command)
        lines = [line("a", TEXTS), line("endless" * 9, TEXTS), line("b", TEXTS)]
        batch_id = start(client, *lines, url=TEXTS)
        wait_for(client, batch_id, lambda batch: batch.request_counts.completed == 1)  # type: ignore[union-attr]
        assert client.batches.cancel(batch_id).status in ("cancelling", "cancelled")
        batch = wait_for(client, batch_id)
        assert (batch.status, batch.cancelling_at is None, batch.error_file_id) == ("cancelled", False, None)
        assert answers(client, batch.output_file_id).keys() == {"a"}
        server.engine.aborted.get(timeout=PATIENCE)
        with pytest.raises(openai.BadRequestError, match="cancelled already"):
            client.batches.cancel(batch_id)

        batch_id = start(client, *lines, url=TEXTS)
        wait_for(client, batch_id, lambda batch: batch.request_counts.completed == 1)  # type: ignore[union-attr]
        with pytest.MonkeyPatch.context() as patch:
            now = time.time()
            patch.setattr(runner.time, "time", lambda: now + 25 * 3600)
            batch = wait_for(client, batch_id)
        assert batch.status == "expired"
        late = answers(client, batch.error_file_id)
        assert late.keys() == {"endless" * 9, "b"}
        assert {one["error"]["code"] for one in late.values()} == {"batch_expired"}


def test_a_file_that_is_wrong_fails_before_anything_is_sent(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path, max_batch_lines=6) as server:
        client = client_of(server)
        wrong = [
            line("a"),
            line("a"),
            {**line("b"), "method": "GET"},
            line("c", TEXTS),
            line("d", stream=True),
            {**line("e"), "url": "/v1/chat/completion"},
            line("f"),
        ]
        batch = wait_for(client, start(client, *wrong))
        assert batch.status == "failed"
        assert batch.errors is not None
        told = {(one.line, (one.message or "").partition(":")[0]) for one in batch.errors.data or []}
        fields = {2: "custom_id", 3: "method", 4: "url", 5: "body.stream", 6: "url"}
        assert told == set(fields.items()) | {(7, "at most 6 lines (max_batch_lines)")}
        assert server.engine.commands.empty()
        with pytest.raises(openai.NotFoundError) as error:
            client.batches.create(input_file_id="file-nothing", endpoint=CHATS, completion_window="24h")
        assert error.value.param == "input_file_id"
        with pytest.raises(openai.BadRequestError, match="did you mean /v1/embeddings"):
            client.batches.create(input_file_id="file-x", endpoint="/v1/embedding", completion_window="24h")  # type: ignore[arg-type]


def test_files_are_kept_listed_and_deleted_within_limits(model_folder: Path, tmp_path: Path) -> None:
    limits = {"max_file_bytes": 5000, "max_tenant_bytes": 9000, "max_body_size": 100}
    with serving(model_folder, tmp_path, **limits) as server:
        client = client_of(server)
        text = content(line("a" * 400))
        ids = [client.files.create(file=(f"{number}.jsonl", text), purpose="batch").id for number in range(3)]
        assert client.files.content(ids[0]).read() == text
        assert {file.id for file in client.files.list()} == set(ids)
        assert [file.id for file in client.files.list(limit=1)] == [file.id for file in client.files.list()]
        assert client.files.retrieve(ids[1]).filename == "1.jsonl"
        assert client.files.delete(ids[1]).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(ids[1])
        with pytest.raises(openai.APIStatusError, match="max_file_bytes"):
            client.files.create(file=("large", b"x" * 6000), purpose="batch")
        client.files.create(file=("rest", b"x" * 4500), purpose="batch")
        with pytest.raises(openai.APIStatusError, match="max_tenant_bytes"):
            client.files.create(file=("more", b"x" * 4500), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.create(file=("a", text), purpose="fine-tune")
        assert server.post("/v1/files", {"file": 1}).json()["error"]["message"].startswith("the Content-Type")
        client.files.delete(ids[0])
        purpose = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        form = purpose + b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--B--\r\n'
        kind = "Multipart/Form-Data; boundary=B; charset=undefined"  # one of Python's codecs, which raises
        assert web.post(f"{server.url}/v1/files", content=form, headers={"Content-Type": kind}).json()["bytes"] == 2


def test_tenants_see_only_their_own_and_run_beside_each_other(model_folder: Path, tmp_path: Path) -> None:
    names = ("one", "..", "two")
    tenants = [{"name": name, "keys": [hashlib.sha256(name.encode()).hexdigest()]} for name in names]
    with serving(model_folder, tmp_path / "batches", api_keys=json.dumps({"tenants": tenants})) as server:
        one, dots, two = (client_of(server, name) for name in names)
        server.engine.script = lambda command: say("x", None if command.tenant == "one" else FinishReason.STOP)(command)
        blocked, other = start(one, line("a")), start(dots, line("b"))
        assert wait_for(dots, other).status == "completed"
        assert one.batches.retrieve(blocked).status in ("validating", "in_progress")
        assert [batch.id for batch in two.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            two.batches.retrieve(other)
        with pytest.raises(openai.NotFoundError):
            two.files.content(dots.batches.retrieve(other).output_file_id or "")
        assert {path.name for path in tmp_path.iterdir()} == {"batches"}  # nothing is beside the folder


def test_requests_that_there_is_no_room_for_wait(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path) as server:
        client = client_of(server)
        refusal = QueueFullError("full")
        refusal.retry_after = 0
        server.engine.refusal = refusal
        batch_id = start(client, line("a"))
        wait_for(client, batch_id, lambda batch: batch.status == "in_progress")
        server.engine.refusal = None
        assert wait_for(client, batch_id).request_counts.completed == 1  # type: ignore[union-attr]


def test_a_tenant_at_its_limit_takes_no_places_from_others(model_folder: Path, tmp_path: Path) -> None:
    tenants: list[dict[str, Any]] = [
        {"name": name, "keys": [hashlib.sha256(name.encode()).hexdigest()]} for name in ("one", "two")
    ]
    tenants[0]["requests_per_minute"] = 2
    keys = json.dumps({"tenants": tenants})
    with serving(model_folder, tmp_path, api_keys=keys, max_batch_requests=2) as server:
        one, two = client_of(server, "one"), client_of(server, "two")
        limited = start(one, *(line(f"r{number}") for number in range(9)))
        is_waiting = wait_for(one, limited, lambda batch: batch.request_counts.completed == 2)  # type: ignore[union-attr]
        assert is_waiting.status == "in_progress"
        assert wait_for(two, start(two, *(line(f"r{number}") for number in range(9)))).status == "completed"
        assert one.batches.retrieve(limited).request_counts.completed <= 4  # type: ignore[union-attr]


def test_a_batch_that_breaks_ends_with_what_is_answered(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = run.request_inside

    async def breaks(app: Any, tenant: Any, method: str, path: str, body: bytes) -> Any:
        if b"broken" in body:
            raise ZeroDivisionError
        return await send(app, tenant, method, path, body)

    monkeypatch.setattr(run, "request_inside", breaks)
    with serving(model_folder, tmp_path, max_batch_requests=1) as server:
        client = client_of(server)
        batch = wait_for(client, start(client, line("a"), line("broken"), line("b")))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [one.code for one in batch.errors.data or []] == ["internal_error"]
        assert answers(client, batch.output_file_id).keys() == {"a"}


def test_a_batch_waits_longer_than_other_requests_may(model_folder: Path, tmp_path: Path) -> None:
    with serving(model_folder, tmp_path, request_timeout=1e-6) as server:
        client = client_of(server)
        assert wait_for(client, start(client, line("a"))).request_counts.completed == 1  # type: ignore[union-attr]
        with pytest.raises(openai.InternalServerError, match="504"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "live"}])


def test_open_batches_and_pages_are_bounded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_OPEN", 1)
    with serving(model_folder, tmp_path) as server:
        client = client_of(server)
        server.engine.script = say("x", None)
        batch_id = start(client, line("a"))
        with pytest.raises(openai.RateLimitError, match="1 batches are open"):
            start(client, line("b"))
        client.batches.cancel(batch_id)
        wait_for(client, batch_id)
        start(client, line("b"))
        for limit in ("0", "101", "0000000000000000000000101", "1" * 5000, "9" * 6):
            assert server.get(f"/v1/batches?limit={limit}").status_code == 400


def test_lines_are_read_behind_a_byte_order_mark_and_ids_are_in_order(tmp_path: Path) -> None:
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / "lines").write_bytes(mark + content(line("a"), line("b")))
        assert [parse_line(text).custom_id for text in read_lines(tmp_path / "lines")] == ["a", "b"]
    ids = [store.new_batch_id() for _ in range(20)]
    assert sorted(ids) == ids


def test_a_server_without_a_folder_says_so(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="batch_folder"):
        client_of(server).batches.list()


def test_every_endpoint_of_batches_is_served(server: Server) -> None:
    assert set(ENDPOINTS) <= server.get("/openapi.json").json()["paths"].keys()


def test_a_line_may_be_anything() -> None:
    assert len(check_lines([b"\xff\n", b"[]\n", b"{}\n", b'{"custom_id": ""}\n', b"{\n"]).problems) == 5
    (problem,) = check_lines(content(line("a", background=True)).splitlines()).problems
    assert problem.error.param == "body.background"
    low = run._content(Line("a", CHATS, {"priority": -(10**6)}), 10**6)
    assert json.loads(low) == {"priority": 10**6}  # and not that of live traffic
    (nested,) = check_lines([b'{"custom_id": "a", "body": ' + b"[" * 100_000]).problems
    assert nested.error.message == "the line is nested too deeply"
    assert check_lines([]).problems[0].number == 1
