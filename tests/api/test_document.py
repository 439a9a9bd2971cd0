"""/openapi.json says what is really answered."""

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from msgspec import structs

from app.core.request import FinishReason
from app.errors import EngineUnavailableError, QueueFullError
from tests.api.conftest import MODEL, Server
from tests.api.fake_engine import READY, say

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
}
BODIES = {**GENERATING, **ENCODING, **READING}
GETS = ["/v1/models", "/health", "/health/ready", "/health/live", "/health/deep", "/metrics", "/version"]


@pytest.fixture
def document(server: Server) -> Any:
    return server.get("/openapi.json").json()


def _check(document: Any, answer: httpx.Response, status: int, path: str | None = None) -> None:
    """The document allows the answer: its status, its media type, its body."""
    assert answer.status_code == status, answer.text
    path, method = path or answer.request.url.path, answer.request.method.lower()
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in document["paths"][path][method]["responses"][str(status)]["content"]
    if kind == "text/event-stream":  # its events have tests of their own
        return
    steps = ("paths", path, method, "responses", str(status), "content", kind, "schema")
    pointer = "#/" + "/".join(step.replace("~", "~0").replace("/", "~1") for step in steps)
    data = answer.json() if kind == "application/json" else answer.text
    Draft202012Validator({"$ref": pointer, **document}).validate(data)


def test_it_knows_every_route_and_no_other_outcome(document: Any) -> None:
    templates = {"/v1/models/{model_id}", "/v1/responses/{response_id}", "/v1/streams/{stream_id}"}
    assert set(document["paths"]) == {*BODIES, *GETS, *templates}
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
    where = "/v1/responses/" + server.post("/v1/responses", {"input": "Hi"}).json()["id"]
    _check(document, server.get(where), 200, response)
    _check(document, server.get(where, params={"stream": "true"}), 400, response)
    _check(document, server.client.delete(where), 200, response)
    _check(document, server.client.delete(where), 404, response)
    _check(document, server.get(where), 404, response)


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
