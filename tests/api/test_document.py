"""/openapi.json describes the answers that are sent."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from socket import create_connection
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from msgspec import structs

from app.api.service import Service
from app.checkpoint.encoders import EncoderConfig
from app.core.request import FinishReason
from app.errors import EngineUnavailableError, QueueFullError
from tests.api.conftest import MODEL, Server, start_server
from tests.api.fake_engine import READY, say
from tests.patience import wait_until

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
MESSAGES = {**CHAT, "max_tokens": 5}
TOOL = {"name": "f", "parameters": {"type": "object"}}
CHAT_TOOLS = {"tools": [{"type": "function", "function": TOOL}]}
CALL = '<think>So.</think>Well.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
GENERATING = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": MESSAGES,
}
ENCODING = {
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/classify": {"input": "a"},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/rerank": {"query": "a", "documents": ["b"], "return_documents": False},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/score": {"text_1": "a", "text_2": "b"},
    "/classify": {"input": "a"},
}
READING = {
    "/tokenize": {"prompt": "Hi", "return_token_strs": True},
    "/detokenize": {"tokens": [72]},
    "/v1/messages/count_tokens": CHAT,
    "/v1/responses/input_tokens": {"input": "Hi"},
}
BODIES = {**GENERATING, **ENCODING, **READING}
OPERATING = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}  # see tests/server/test_adapters.py
HEARING = {"/v1/audio/transcriptions", "/v1/audio/translations"}  # see tests/server/test_speech.py
FORECASTING = {"/v1/forecast"}  # see tests/api/test_forecasts.py
FILE, BATCH = "/v1/files/{file_id}", "/v1/batches/{batch_id}"
BATCHING = {"/v1/files", FILE, f"{FILE}/content", "/v1/batches", BATCH, f"{BATCH}/cancel"}
GETS = [
    "/v1/models",
    "/health",
    "/health/ready",
    "/health/live",
    "/health/deep",
    "/metrics",
    "/version",
    "/v1/engine/steps",
]


@pytest.fixture(scope="module")
def document(_shared_server: Server) -> Any:
    return _shared_server.get("/openapi.json").json()


def _check(document: Any, answer: httpx.Response, status: int, path: str | None = None) -> None:
    """Check that the document allows an answer: its status, its media type and its body."""
    assert answer.status_code == status, answer.text
    path, method = path or answer.request.url.path, answer.request.method.lower()
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in document["paths"][path][method]["responses"][str(status)]["content"]
    steps = ["paths", path, method, "responses", str(status), "content", kind, "schema"]
    if kind == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        data = [json.loads(line) for line in lines if line != "[DONE]"]
        steps[-1:] = ["itemSchema", "properties", "data", "contentSchema"]
    else:
        data = [answer.json() if kind == "application/json" else answer.text]
    pointer = "#/" + "/".join(step.replace("~", "~0").replace("/", "~1") for step in steps)
    for one in data:
        Draft202012Validator({"$ref": pointer, **document}).validate(one)


def test_it_knows_every_route_and_no_other_outcome(document: Any) -> None:
    one = "/v1/responses/{response_id}"
    templates = {"/v1/models/{model_id}", one, f"{one}/cancel", f"{one}/input_items", "/v1/streams/{stream_id}"}
    assert set(document["paths"]) == {*BODIES, *GETS, *OPERATING, *HEARING, *FORECASTING, *BATCHING, *templates}
    for operations in document["paths"].values():
        assert not any("422" in operation["responses"] for operation in operations.values())


@pytest.mark.parametrize("path", BODIES)
def test_examples_of_requests_match_their_schemas(document: Any, path: str) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    examples = [schema["example"]] if "example" in schema else schema["examples"]
    for body in (*examples, BODIES[path]):
        Draft202012Validator(schema).validate(body)
    assert not Draft202012Validator(schema).is_valid({**BODIES[path], "tempurature": 1})


@pytest.mark.parametrize("path", GETS)
def test_answers_about_the_server(server: Server, document: Any, path: str) -> None:
    _check(document, server.get(path), 200)
    if path.startswith("/health") and path != "/health/deep":  # which says the same for some seconds
        server.engine.ready, server.engine.failure = None, "gone"
        _check(document, server.get(path), 503)


def test_answers_about_one_thing(server: Server, document: Any) -> None:
    model, response = "/v1/models/{model_id}", "/v1/responses/{response_id}"
    _check(document, server.get(f"/v1/models/{MODEL}"), 200, model)
    _check(document, server.get("/v1/models/other"), 404, model)
    where = "/v1/responses/" + server.post("/v1/responses", {"input": "Hi", "background": True}).json()["id"]
    _check(document, server.post(f"{where}/cancel"), 200, f"{response}/cancel")
    _check(document, server.get(f"{where}/input_items"), 200, f"{response}/input_items")
    _check(document, server.get(where), 200, response)
    _check(document, server.get(where, params={"stream": "true"}), 400, response)
    _check(document, server.client.delete(where), 200, response)
    _check(document, server.client.delete(where), 404, response)
    _check(document, server.get(where), 404, response)


def test_answers_about_files_and_batches(model_folder: Path, tmp_path: Path, document: Any) -> None:
    with contextmanager(start_server)(model_folder, batch_folder=tmp_path) as server:
        upload = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"nothing")}}
        file = server.post("/v1/files", **upload)
        _check(document, file, 200)
        _check(document, server.post("/v1/files", data={"purpose": "other"}, files=upload["files"]), 400)
        file_id = file.json()["id"]
        _check(document, server.get("/v1/files"), 200)
        _check(document, server.get(f"/v1/files/{file_id}"), 200, FILE)
        _check(document, server.get(f"/v1/files/{file_id}/content"), 200, f"{FILE}/content")
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = server.post("/v1/batches", body)
        _check(document, batch, 200)
        _check(document, server.post("/v1/batches", {**body, "endpoint": "/v1/models"}), 400)
        path = f"/v1/batches/{batch.json()['id']}"
        wait_until(lambda: server.get(path).json()["status"] == "failed")
        _check(document, server.get(path), 200, BATCH)
        _check(document, server.get("/v1/batches"), 200)
        _check(document, server.post(f"{path}/cancel"), 400, f"{BATCH}/cancel")
        _check(document, server.client.delete(f"/v1/files/{file_id}"), 200, FILE)
        _check(document, server.client.delete(f"/v1/files/{file_id}"), 404, FILE)


@pytest.mark.parametrize("path", [*GENERATING, *READING])
def test_answers_of_a_model_that_generates(server: Server, document: Any, path: str) -> None:
    _check(document, server.post(path, BODIES[path]), 200)
    if path in GENERATING:
        _check(document, server.post(path, {**BODIES[path], "stream": True}), 200)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/completions", {"logprobs": 2, "echo": True, "n": 2}),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 2, "n": 2}),
        ("/v1/chat/completions", CHAT_TOOLS),
        ("/v1/responses", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ("/v1/responses", {"tools": [{"type": "function", **TOOL}], "metadata": {"a": "b"}}),
        ("/v1/responses", {"max_output_tokens": 16}),
        ("/v1/messages", {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "max_tokens": 200}),
        ("/v1/messages", {"stop_sequences": ["Well"], "max_tokens": 200}),
    ],
)
def test_answers_with_all_that_can_be_in_them(server: Server, document: Any, path: str, options: Any) -> None:
    server.engine.ready, server.engine.script = structs.replace(READY, max_model_len=2048), say(CALL, FinishReason.STOP)
    _check(document, server.post(path, {**BODIES[path], **options}), 200)
    _check(document, server.post(path, {**BODIES[path], **options, "stream": True}), 200)


@pytest.mark.parametrize("path", GENERATING)
def test_events_about_errors(server: Server, document: Any, path: str) -> None:
    for reason in (FinishReason.ERROR, FinishReason.TIMEOUT):
        server.engine.script = say("Hi", reason, error="broken")
        _check(document, server.post(path, {**BODIES[path], "stream": True}), 200)


@pytest.mark.parametrize("path", BODIES)
def test_errors(server: Server, document: Any, path: str) -> None:
    _check(document, server.post(path, {}), 400)
    _check(document, server.post(path, {**BODIES[path], "model": "other"}), 404)
    _check(document, server.post(path, {**BODIES[path], "user": "x" * 200_000}), 413)
    server.engine.ready, server.engine.failure = None, "gone"
    _check(document, server.post(path, BODIES[path]), 503)


@pytest.mark.parametrize("path", GENERATING)
def test_errors_of_the_engine(server: Server, document: Any, path: str) -> None:
    for refusal in (QueueFullError("full"), EngineUnavailableError("draining")):
        server.engine.refusal = refusal
        answer = server.post(path, BODIES[path])
        _check(document, answer, refusal.status)
        assert "Retry-After" in answer.headers
    server.engine.refusal = None
    server.engine.script = say("Hi", FinishReason.ERROR, error="broken")
    _check(document, server.post(path, BODIES[path]), 500)


# ---------------------------------------------------------------------- each status


def test_a_tenants_queue_is_looked_at_again_where_requests_enter_it(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have come while the body was on its way."""
    waiting = iter([0, 2])
    monkeypatch.setattr(guarded.engine, "num_waiting", lambda _tenant: next(waiting))
    path = "/v1/completions"
    answer = guarded.post(path, BODIES[path], headers={"Authorization": "Bearer narrow"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "tenant_queue_full")
    assert guarded.engine.commands.empty()
    assert guarded.post(path, BODIES[path]).headers["www-authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def guarded(model_folder: Path) -> Iterator[Server]:
    """A server that requires an API key."""
    tenants = [
        {"name": "a", "keys": ["0" * 64]},
        {"name": "narrow", "keys": [hashlib.sha256(b"narrow").hexdigest()], "max_queued_requests": 2},
    ]
    yield from start_server(model_folder, api_keys=json.dumps({"tenants": tenants}))


@pytest.fixture(scope="module")
def embedder(model_folder: Path) -> Iterator[Server]:
    yield from start_server(model_folder, EncoderConfig("embed", 256), max_body_size=100_000)


@pytest.fixture(scope="module")
def classifier(model_folder: Path) -> Iterator[Server]:
    yield from start_server(model_folder, EncoderConfig("classify", 256, labels=("a", "b")), max_body_size=100_000)


@pytest.fixture(scope="module")
def too_late(model_folder: Path) -> Iterator[dict[str, httpx.Response]]:
    """The answers to requests whose body never arrives, by path."""
    servers = start_server(model_folder, client_timeout=1.0)
    server = next(servers)
    answers = {}
    with ExitStack() as stack:
        connections = {path: stack.enter_context(create_connection((server.host, server.port))) for path in BODIES}
        for path, connection in connections.items():
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            connection.sendall(head.encode())
        for path, connection in connections.items():
            answer = HTTPResponse(connection)
            answer.begin()
            request = httpx.Request("POST", server.url + path)
            headers = answer.getheaders()
            answers[path] = httpx.Response(answer.status, headers=headers, content=answer.read(), request=request)
            answer.close()
    yield answers
    yield from servers


def _full(server: Server, path: str) -> httpx.Response:
    server.engine.is_full = True
    return server.post(path, BODIES[path])


def _broken(server: Server, path: str) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Service, "check_model")
        return server.post(path, BODIES[path])


def _gone(server: Server, path: str) -> httpx.Response:
    server.engine.ready, server.engine.failure = None, "gone"
    return server.post(path, BODIES[path])


PROVOKE: dict[str, Callable[[Server, str], httpx.Response]] = {
    "400": lambda server, path: server.post(path, {}),
    "404": lambda server, path: server.post(path, {**BODIES[path], "model": "other"}),
    "413": lambda server, path: server.post(path, {**BODIES[path], "user": "x" * 200_000}),
    "415": lambda server, path: server.post(path, BODIES[path], headers={"Content-Encoding": "br"}),
    "429": _full,
    "500": _broken,
    "503": _gone,
    "504": lambda server, path: server.post(path, BODIES[path], headers={"X-Request-Timeout": "0.000000001"}),
}


@pytest.mark.parametrize("path", BODIES)
def test_each_status_is_answered_as_it_is_documented(
    server: Server,
    embedder: Server,
    classifier: Server,
    guarded: Server,
    too_late: dict[str, httpx.Response],
    document: Any,
    path: str,
) -> None:
    if path in ENCODING:
        server = classifier if path.endswith("/classify") else embedder
    runs = set() if path in READING else {"429", "504"}
    documented = document["paths"][path]["post"]["responses"].keys() - {"200"}
    assert documented == {"400", "401", "404", "408", "413", "415", "500", "503"} | runs
    _check(document, guarded.post(path, BODIES[path]), 401)
    _check(document, too_late[path], 408)
    for status in documented - {"401", "408"}:
        server.engine.reset()
        _check(document, PROVOKE[status](server, path), int(status))


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/responses/a", "/v1/streams/a", "/version"])
def test_errors_of_paths_without_a_body(server: Server, guarded: Server, document: Any, path: str) -> None:
    names = {f"/v1/models/{MODEL}": "model_id", "/v1/responses/a": "response_id", "/v1/streams/a": "stream_id"}
    template = f"{path[: path.index('/', 4)]}/{{{names[path]}}}" if path in names else path
    _check(document, guarded.get(path), 401, template)
    _check(document, server.get(path, headers={"X-Request-Timeout": "soon"}), 400, template)
