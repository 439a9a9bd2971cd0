"""What the server says is what its document says: status, media type and body."""

from typing import Any

import httpx
import jsonschema
import pytest

from tests.api.conftest import MODEL, Server

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
ANSWERS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/{model_id}", None),
    ("GET", "/health", None),
    ("GET", "/health/live", None),
    ("GET", "/version", None),
    ("GET", "/metrics", None),
    ("POST", "/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("POST", "/tokenize", {"prompt": "Hi"}),
    ("POST", "/detokenize", {"tokens": [72, 105]}),
    ("POST", "/v1/completions", {"prompt": ["Hi", "Ho"], "max_tokens": 3, "logprobs": 2, "echo": True}),
    ("POST", "/v1/completions", {"prompt": "Hi", "stream": True}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", {**CHAT, "n": 2, "logprobs": True, "top_logprobs": 2}),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True}),
    ("POST", "/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
    ("POST", "/v1/messages", CHAT),
    ("POST", "/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
    *(
        ("POST", path, {"surprise": 1})
        for path in (
            "/tokenize", "/detokenize", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages",
            "/v1/messages/count_tokens", "/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/classify",
        )
    ),
    ("POST", "/v1/embeddings", {"input": "a model that generates"}),
    ("POST", "/v1/chat/completions", {**CHAT, "model": "other"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), ANSWERS, ids=[f"{p}-{i}" for i, (_, p, _) in enumerate(ANSWERS)])
def test_answers_are_as_documented(server: Server, method: str, path: str, body: Any) -> None:
    document = server.get("/openapi.json").json()
    options: dict[str, Any] = {} if body is None else {"json": body}
    answer: httpx.Response = server.client.request(method, path.replace("{model_id}", MODEL), **options)
    documented = document["paths"][path][method.lower()]["responses"]
    content = documented[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": document["components"]}
        jsonschema.validate(answer.json(), schema, cls=jsonschema.Draft202012Validator)
