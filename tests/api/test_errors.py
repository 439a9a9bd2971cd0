"""A wrong request gets an error in OpenAI's format that names its field, and others are not affected."""

import gzip
import json
import socket
from typing import Any

import pytest
from backports import zstd

from app.core.request import FinishReason
from app.core.wire import GenerateCommand, RequestOutput
from app.errors import EngineUnavailableError, QueueFullError
from app.settings import Settings
from app.text.tokenizer import Tokenizer
from tests.api.conftest import Server
from tests.api.fake_engine import READY, say
from tests.grammar.test_checker import CRASH
from tests.patience import PATIENCE

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Hi"}

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
WRONG_TOOL = {"type": "function", "function": {"name": "g", "parameters": {"properties": {"a": {"type": "foo"}}}}}
CHOICE = {"function": {"name": "f"}}
REFUSAL = {"type": "refusal", "refusal": "No."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _allowed(mode: str, *names: str) -> dict[str, Any]:
    """A choice of some tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


WRONG = [
    # body, field that the error names
    ({**TEXT, "temperature": -0.1}, "temperature"),
    ({**TEXT, "temperature": 2.1}, "temperature"),
    ({**CHAT, "temperature": 2.1}, "temperature"),
    ({**TEXT, "temperature": "hot"}, "temperature"),
    ({**TEXT, "temperature": True}, "temperature"),
    ({**TEXT, "temperature": 10**400}, "temperature"),
    ({**TEXT, "top_p": 0}, "top_p"),
    ({**TEXT, "top_p": 1.1}, "top_p"),
    ({**TEXT, "top_k": 1.5}, "top_k"),
    ({**TEXT, "top_k": -2}, "top_k"),
    ({**TEXT, "top_k": 2**31}, "top_k"),
    ({**TEXT, "min_p": 2}, "min_p"),
    ({**TEXT, "seed": 2**63}, "seed"),
    ({**TEXT, "seed": -(2**63) - 1}, "seed"),
    ({**TEXT, "n": 0}, "n"),
    ({**TEXT, "n": 5}, "n"),
    ({**TEXT, "n": 100_000_000}, "n"),
    ({**TEXT, "best_of": 3}, "best_of"),
    ({**TEXT, "max_tokens": -1}, "max_tokens"),
    ({**TEXT, "max_tokens": 0}, "max_tokens"),
    ({**TEXT, "max_tokens": 10**30}, "max_tokens"),
    ({**TEXT, "max_tokens": 255}, "max_tokens"),
    ({**TEXT, "min_tokens": 17}, "min_tokens"),
    ({**TEXT, "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({**TEXT, "presence_penalty": 3}, "presence_penalty"),
    ({**TEXT, "frequency_penalty": -3}, "frequency_penalty"),
    ({**TEXT, "repetition_penalty": 0}, "repetition_penalty"),
    ({**TEXT, "logprobs": 6}, "logprobs"),
    ({**TEXT, "logprobs": True}, "logprobs"),
    ({**TEXT, "stop": [str(index) for index in range(33)]}, "stop"),
    ({**TEXT, "stop": ["a", ""]}, "stop"),
    ({**TEXT, "stop": "x" * 1025}, "stop"),
    ({**TEXT, "stop": ""}, "stop"),
    ({**TEXT, "stop": ["a", None]}, "stop[1]"),
    ({**TEXT, "stop_token_ids": [300]}, "stop_token_ids"),
    ({**TEXT, "stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({**TEXT, "stop_token_ids": [1] * 10_000}, "stop_token_ids"),
    ({**TEXT, "logit_bias": {"300": 1}}, "logit_bias"),
    ({**TEXT, "logit_bias": {"x": 1}}, "logit_bias"),
    ({**TEXT, "logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ({**TEXT, "logit_bias": {"5": 101}}, "logit_bias.5"),
    ({**TEXT, "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({**TEXT, "priority": 2**31}, "priority"),
    ({**TEXT, "speculative": -1}, "speculative"),
    ({**TEXT, "speculative": "ngram"}, "speculative"),
    ({**TEXT, "stream_options": {"include_usage": True}}, "stream_options"),
    ({**TEXT, "stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({**TEXT, "model": "other"}, "model"),
    ({**TEXT, "echo": "yes"}, "echo"),
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [[1, 2], [3, -4]]}, "prompt[1][1]"),
    ({"prompt": [5, 300]}, "prompt"),
    ({"prompt": [2**40]}, "prompt[0]"),
    ({"prompt": "x" * 256}, "prompt"),
    ({"prompt": "x" * 256, "max_tokens": 1}, "prompt"),
    ({**TEXT, "suffix": "end"}, "suffix"),
    ({**TEXT, "guided_json": {"type": "foo"}}, "guided_json"),
    ({**TEXT, "guided_json": "{"}, "guided_json"),
    ({**TEXT, "guided_json": "[]"}, "guided_json"),
    ({**TEXT, "guided_regex": "(a"}, "guided_regex"),
    ({**TEXT, "guided_regex": "a" * 1001}, "guided_regex"),
    ({**TEXT, "guided_choice": []}, "guided_choice"),
    ({**TEXT, "guided_choice": ["a", ""]}, "guided_choice[1]"),
    ({**TEXT, "guided_grammar": "start: x"}, "guided_grammar"),
    ({**TEXT, "guided_grammar": CRASH}, "guided_grammar"),
    ({**TEXT, "guided_json": {"const": -(2**63)}}, "guided_json"),
    ({**TEXT, "guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({**TEXT, "guided_regex": "a", "min_tokens": 1}, "min_tokens"),
    ({**TEXT, "structured_outputs": {}}, "structured_outputs"),
    ({**TEXT, "structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex"),
    ({**TEXT, "structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
    ),
    ({**CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function"),
    ({**CHAT, "tools": [TOOL, {"type": "custom", "custom": {"name": "g"}}]}, "tools[1]"),
    ({**CHAT, "tools": 7}, "tools"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {}}, "tool_choice.type"),
    ({**CHAT, "tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": "f"}}, "tool_choice.function"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
    ({**CHAT, "tools": [TOOL], "tool_choice": _allowed("maybe", "f")}, "tool_choice.allowed_tools.mode"),
    ({**CHAT, "tools": [TOOL], "tool_choice": _allowed("auto", "f", "g")}, "tool_choice"),
    ({**CHAT, "tools": [TOOL], "tool_choice": _allowed("required")}, "tool_choice.allowed_tools.tools"),
    ({**CHAT, "thinking_token_budget": 0}, "thinking_token_budget"),
    ({**CHAT, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({**CHAT, "tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({**CHAT, "tools": [TOOL, *({**TOOL, "function": {"name": f"f{i}"}} for i in range(3))]}, "tools"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({**CHAT, "tools": [TOOL], "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
    ({**CHAT, "tools": [TOOL], "tool_choice": "required", "stop": ["f"]}, "stop"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", **CHOICE}, "stop_token_ids": [3]}, "stop_token_ids"),
    ({**CHAT, "tools": [TOOL, WRONG_TOOL], "tool_choice": "required"}, "tools[1].function.parameters"),
    ({"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "Hi", "refusal": "No."}]}, "messages[0].refusal"),
    ({"messages": [{"role": "user", "content": "Hi", "reasoning": "Hm"}]}, "messages[0].reasoning"),
    ({**CHAT, "tool_choice": "required"}, "tool_choice"),
    ({**CHAT, "reasoning_effort": "huge"}, "reasoning_effort"),
    ({**CHAT, "add_special_tokens": True}, "add_special_tokens"),
    ({**CHAT, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ({**CHAT, "echo": True}, "echo"),
    ({**CHAT, "max_tokens": 0}, "max_tokens"),
    ({**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({**CHAT, "max_completion_tokens": 500}, "max_completion_tokens"),
    ({**CHAT, "top_logprobs": 1}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    ({**CHAT, "chat_template": "{{ 1 }}"}, "chat_template"),
    ({**CHAT, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({**CHAT, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({**CHAT, "continue_final_message": True}, "continue_final_message"),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [CALL]}], "continue_final_message": True},
        "continue_final_message",
    ),
    ({"messages": [{"role": "user", "content": [REFUSAL]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "messages[0].content[0].refusal"),
    ({"messages": [{"role": "assistant", "content": [{**REFUSAL, "text": "x"}]}]}, "messages[0].content[0].text"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 256}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "boss", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "Hi", "name": "<|im_end|>"}]}, "messages[0].name"),
    ({"messages": [*CHAT["messages"], {"role": "user", "content": 7}]}, "messages[1].content"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        "messages[0].content[1]",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[f"{param}-{i}" for i, (_, param) in enumerate(WRONG)])
def test_a_wrong_field_is_named(server: Server, body: dict[str, Any], param: str) -> None:
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = server.post(route, body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400)
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert server.engine.commands.empty()


NOTHING = {
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "store": False,
    "metadata": {},
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "safety_identifier": "me",
    "prompt_cache_key": "key",
    "user": "me",
    "guided_json": None,
    "audio": None,
    "stop": None,
    "n": None,
    "seed": None,
    "logit_bias": None,
    "stream": None,
    "stream_options": None,
    "temperature": None,
}


def test_a_prompt_that_is_certainly_too_long_is_refused_before_it_is_tokenized(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("work for nothing")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    monkeypatch.setattr(Tokenizer, "encode_segments", encode)
    text = "x" * (READY.max_model_len * server.service.tokenizer.longest_token + 1)
    bodies = [{"prompt": text}, {"prompt": ["x"] * 1000}]
    for path, body in [
        *(("/v1/completions", body) for body in bodies),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ]:
        answer = server.post(path, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in ("prompt", "messages")


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c", "title": "d"}]}, "documents[1].title"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "b"}, "c"]}, "model"),
        ("/v1/rerank", {"query": "a", "documents": ["b", {}]}, "documents[1].text"),
        ("/v1/responses", {"input": "a", "tool_choice": {}}, "tool_choice"),
        ("/tokenize", {**TEXT, "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_wrong_field_is_named_elsewhere_too(server: Server, route: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(route, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/completions", {**TEXT, "guided_choice": ["a"]}, "guided_choice"),
        ("/v1/completions", {**TEXT, "logprobs": 0}, "logprobs"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True}, "logprobs"),
        ("/v1/responses", {"input": "Hi", "include": ["message.output_text.logprobs"]}, "include"),
    ],
)
def test_what_the_echo_worker_cannot_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, route: str, body: Any, param: str
) -> None:
    monkeypatch.setitem(vars(server.service), "settings", Settings(worker="echo"))
    answer = server.post(route, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("body", [{**TEXT, "best_of": 1, "suffix": ""}, {**TEXT, "n": 2, "best_of": 2}, CHAT])
def test_unsupported_fields_are_accepted_with_neutral_values(server: Server, body: dict[str, Any]) -> None:
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    assert server.post(route, {**NOTHING, **body}).status_code == 200


BROKEN = {
    "cut": b'{"prompt": "Hi"',
    "empty": b"",
    "list": b"[]",
    "text": b'"Hi"',
    "nan": b'{"prompt": "Hi", "temperature": NaN}',
    "infinity": b'{"prompt": "Hi", "presence_penalty": Infinity}',
    "overflow": b'{"prompt": "Hi", "temperature": 1e400}',
    "digits": b'{"prompt": "Hi", "seed": ' + b"9" * 10_000 + b"}",
    "deep": b'{"prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "surrogate": b'{"prompt": "\\ud800"}',
    "not utf-8": b'{"prompt": "\xff"}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_body_is_refused(server: Server, kind: str) -> None:
    answer = server.post("/v1/completions", content=BROKEN[kind], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert ("nested too deeply" in error["message"]) == (kind == "deep")


def test_other_content_types_are_refused(server: Server) -> None:
    """A web page can make a browser send text/plain anywhere, and JSON only where it is invited."""
    answer = server.post("/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_byte_order_mark_is_skipped_and_compressed_bodies_are_unpacked(server: Server) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"prompt": "Hi"}).encode()
    packed = {"gzip": gzip.compress(body), "X-Gzip": gzip.compress(body), "zstd": zstd.compress(body)}
    for content, headers in [(body, {}), *((data, {"Content-Encoding": name}) for name, data in packed.items())]:
        answer = server.post(
            "/v1/completions", content=content, headers={"Content-Type": "application/json", **headers}
        )
        assert answer.json()["choices"][0]["text"] == "Hello"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd, gzip"])
def test_other_encodings_are_refused_by_name(server: Server, encoding: str) -> None:
    answer = server.post("/v1/completions", {"prompt": "Hi"}, headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert answer.json()["error"]["param"] == "Content-Encoding"
    assert encoding in answer.json()["error"]["message"]


def test_a_large_body_is_refused_while_it_is_read(server: Server) -> None:
    pieces = 0

    def endless():
        nonlocal pieces
        for pieces in range(1, 30):  # noqa: B007
            yield b" " * 10_000

    declared = server.post("/v1/completions", {"prompt": "x" * 100_001})
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as client:
        head = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 999999\r\nExpect: 100-continue\r\n"
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    chunked = server.post("/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"
    assert server.complete()["choices"][0]["text"] == "Hello"


def test_unknown_routes_and_methods(server: Server) -> None:
    missing, method = server.get("/v1/nothing"), server.get("/v1/completions")
    assert (missing.status_code, method.status_code) == (404, 405)
    assert "/v1/nothing" in missing.json()["error"]["message"]
    assert method.json()["error"]["type"] == "invalid_request_error"
    assert method.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_not_there(server: Server, stream: bool) -> None:
    server.engine.ready, server.engine.failure = None, "out of memory"
    answer = server.post("/v1/completions", {**TEXT, "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "out of memory" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue(server: Server, stream: bool) -> None:
    """No choice is left running if the queue takes only some of them."""
    server.engine.refusal, server.engine.refuse_after = QueueFullError("full"), 2
    answer = server.post("/v1/completions", {**TEXT, "n": 4, "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    submitted = {server.engine.commands.get_nowait().request_id for _ in range(2)}
    assert {server.engine.aborted.get(timeout=PATIENCE) for _ in range(2)} == submitted


def test_an_engine_that_dies_at_the_last_moment(server: Server) -> None:
    server.engine.refusal = EngineUnavailableError("gone")
    assert server.post("/v1/chat/completions", {**CHAT, "stream": True}).status_code == 503


def test_a_failed_request(server: Server) -> None:
    server.engine.script = say("He", reason=FinishReason.ERROR, error="the model failed")
    answer = server.post("/v1/completions", TEXT)
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the model failed",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


@pytest.mark.parametrize(("route", "body"), [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)])
def test_a_stream_that_fails_says_so(server: Server, route: str, body: dict[str, Any]) -> None:
    server.engine.script = say("He", reason=FinishReason.ERROR, error="the model failed")
    *news, last = server.events(route, {**body, "n": 2})
    assert last["error"]["message"] == "the model failed"
    assert all(choice["finish_reason"] is None for event in news for choice in event["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_hidden_and_its_id_is_told(
    server: Server, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(command: GenerateCommand) -> list[RequestOutput]:
        return [RequestOutput(request_id=command.request_id, token_ids=[None])]  # type: ignore[list-item]

    server.engine.script = broken
    answer = server.post("/v1/completions", {**TEXT, "stream": stream}, headers={"X-Request-ID": "abc"})
    assert answer.headers["x-request-id"] == "abc"
    assert "NoneType" not in answer.text
    assert "NoneType" in caplog.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"error"' in answer.text
    else:
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
