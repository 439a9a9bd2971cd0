"""Fields that a schema does not declare: hints change nothing, and unknown ones are ignored and named, or refused."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from app.api.chat.schema import ChatRequest
from app.api.completions.schema import CompletionRequest
from app.api.edge.body import RequestBody
from app.api.messages.schema import MessagesRequest
from app.api.responses.schema import ResponsesRequest
from tests.api.conftest import MODEL, Server, start_server

HI = {"role": "user", "content": "Hi"}
CHAT: dict[str, Any] = {"messages": [HI]}
MESSAGES = {**CHAT, "max_tokens": 9}
TOOL = {"type": "function", "function": {"name": "f"}}
UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    # path, body, the names in the header
    ("/v1/completions", {"prompt": "Hi", "surprise": None, "other": 0}, "other"),
    ("/v1/chat/completions", {"messages": [{**HI, "b": 1}, {**HI, "b": 1}], "a": 1}, "a, messages[].b"),
    ("/v1/chat/completions", {**CHAT, "tools": [{**TOOL, "cache": {}}], "tool_choice": "none"}, "tools[].cache"),
    ("/v1/chat/completions", {**CHAT, "ü\r\n, ": 1}, "%C3%BC%0D%0A%2C%20"),
    ("/v1/chat/completions", {**CHAT, "x" * 1000: 1}, "x" * 64),
    ("/v1/chat/completions", {**CHAT, **{f"f{i:02}": 1 for i in range(40)}}, ", ".join(f"f{i:02}" for i in range(16))),
    ("/v1/responses", {"input": [{**HI, "surprise": 1}]}, "input[].surprise"),
    ("/v1/messages", {**MESSAGES, "system": [{"type": "text", "text": "x", "a": 1}]}, "system[].a"),
    ("/v1/messages/count_tokens", {**CHAT, "surprise": 1}, "surprise"),
]


def num_ignored(server: Server) -> float:
    """Requests with ignored fields that the metrics have counted."""
    found = re.search(r"^paceline_requests_with_ignored_fields_total (.+)$", server.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize(("path", "body", "names"), UNKNOWN, ids=range(len(UNKNOWN)))
def test_unknown_fields_are_ignored_named_and_counted(
    server: Server, path: str, body: dict[str, Any], names: str
) -> None:
    before = num_ignored(server)
    answer = server.post(path, body)
    assert (answer.status_code, answer.headers["X-Ignored-Fields"]) == (200, names)
    assert num_ignored(server) == before + 1


def test_unknown_fields_are_named_before_a_stream_and_beside_an_error(server: Server) -> None:
    for status, body in ((200, {"stream": True}), (404, {"model": "other"})):
        answer = server.post("/v1/chat/completions", {**CHAT, **body, "surprise": 1})
        assert (answer.status_code, answer.headers["X-Ignored-Fields"]) == (status, "surprise")


def test_unknown_fields_are_refused_where_the_setting_says_so(model_folder: Path) -> None:
    with contextmanager(start_server)(model_folder, unknown_fields="refuse") as server:
        for body, name in (({"surprise": 1}, "surprise"), ({"tools": [{**TOOL, "cache": {}}]}, "tools[0].cache")):
            answer = server.post("/v1/chat/completions", {**CHAT, **body})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert server.post("/v1/chat/completions", {**CHAT, "metadata": {"a": "b"}}).status_code == 200


def test_hints_of_openais_client_change_nothing(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        metadata={"job": "7"},
        store=True,
        verbosity="low",
        reasoning_effort="high",
        service_tier="flex",
        prediction={"type": "content", "content": "Hello"},
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        safety_identifier="me",
        user="me",
    )
    assert answer.parse().choices[0].message.content == "Hello"
    assert "X-Ignored-Fields" not in answer.headers


REQUESTS: list[tuple[str, type[RequestBody], dict[str, Any]]] = [
    ("/v1/chat/completions", ChatRequest, CHAT),
    ("/v1/completions", CompletionRequest, {"prompt": "Hi"}),
    ("/v1/responses", ResponsesRequest, {"input": "Hi"}),
    ("/v1/messages", MessagesRequest, MESSAGES),
]


@pytest.mark.parametrize(("path", "model", "body"), REQUESTS, ids=[path for path, *_ in REQUESTS])
def test_every_hint_is_taken_and_every_unsupported_field_refused(
    server: Server, path: str, model: type[RequestBody], body: dict[str, Any]
) -> None:
    """With a value that no field means; the table in docs/api.md says the same of them."""
    hints = {name: {"odd": [1]} for name in model.hints - set(model.model_fields)}
    answer = server.post(path, {**body, **hints})
    assert (answer.status_code, answer.headers.get("X-Ignored-Fields")) == (200, None)
    for name in model.unsupported:
        if name in model.model_fields:
            continue
        refusal = server.post(path, {**body, name: {"odd": [1]}})
        assert refusal.status_code == 400
        assert name in refusal.json()["error"]["message"]
    for at in range(max(map(len, model.unsupported.values())) + 1):  # null behind the last
        nothing = {
            name: ([*values, None] * 9)[at]
            for name, values in model.unsupported.items()
            if name not in model.model_fields
        }
        assert server.post(path, nothing | body).status_code == 200


@pytest.mark.parametrize(("given", "most"), [({}, None), (True, None), (False, 0), (0, 0), (1, 1), (3, 3)])
def test_a_request_says_how_much_may_be_guessed(server: Server, given: Any, most: int | None) -> None:
    fields = given if isinstance(given, dict) else {"speculative": given}
    bodies = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGES, "/v1/responses": {"input": "Hi"}}
    for path, body in {**bodies, "/v1/completions": {"prompt": "Hi"}}.items():
        assert server.post(path, {**body, **fields}).status_code == 200
        assert server.engine.last_command().max_drafts == most


_EPHEMERAL = {"type": "ephemeral"}
_AN_HOUR = {"type": "ephemeral", "ttl": "1h"}
_MARKED = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": _AN_HOUR}]}]}
_TOOL = {"type": "function", "function": {"name": "f"}}
_RESULT = {
    "type": "tool_result",
    "tool_use_id": "a",
    "content": [{"type": "text", "text": "a", "cache_control": _EPHEMERAL}],
}


@pytest.mark.parametrize(
    ("path", "given", "seconds"),
    [
        ("/v1/chat/completions", {}, 0.0),
        ("/v1/completions", {"cache_retention": 7.5}, 7.5),
        ("/v1/chat/completions", {"prompt_cache_key": "a"}, 300.0),
        ("/v1/chat/completions", {"prompt_cache_key": "a", "cache_retention": 0}, 0.0),
        ("/v1/responses", {"prompt_cache_retention": "24h"}, 86400.0),
        ("/v1/responses", {"prompt_cache_retention": "in_memory"}, 300.0),
        ("/v1/chat/completions", {"cache_retention": 7.5, **_MARKED}, 3600.0),
        ("/v1/chat/completions", {"tools": [{**_TOOL, "cache_control": _EPHEMERAL}], "tool_choice": "none"}, 300.0),
        ("/v1/messages", {"cache_control": _EPHEMERAL}, 300.0),
        ("/v1/messages", {"cache_control": _EPHEMERAL, **_MARKED}, 3600.0),
        ("/v1/messages", {"system": [{"type": "text", "text": "a", "cache_control": _EPHEMERAL}]}, 300.0),
        ("/v1/messages", {"messages": [{"role": "user", "content": [_RESULT]}]}, 300.0),
    ],
)
def test_a_request_says_how_long_its_blocks_are_kept(
    server: Server, path: str, given: dict[str, Any], seconds: float
) -> None:
    body = next(body for known, _, body in REQUESTS if known == path)
    assert server.post(path, {**body, **given}).status_code == 200
    assert server.engine.last_command().cache_retention == seconds


def test_a_time_that_no_cache_has_is_refused_by_name(server: Server) -> None:
    for path, given, name in (
        ("/v1/chat/completions", {"cache_retention": 1e9}, "cache_retention"),
        ("/v1/messages", {"cache_control": {"type": "ephemeral", "ttl": "1y"}}, "cache_control.ttl"),
        ("/v1/chat/completions", {"cache_control": {"type": "forever"}}, "cache_control.type"),
    ):
        body = next(body for known, _, body in REQUESTS if known == path)
        refusal = server.post(path, {**body, **given})
        assert refusal.status_code == 400
        assert name in refusal.json()["error"]["message"]
