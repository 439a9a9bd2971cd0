"""Request bodies with one changed place are answered or refused, and never cause an error of the server."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import Server
from tests.api.fake_engine import READY

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
RESPONSES: Any = {
    "model": None,
    "instructions": "Be brief",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yo", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
        {
            "type": "custom_tool_call",
            "call_id": "d",
            "name": "g",
            "namespace": "n",
            "input": "x",
            "status": "incomplete",
        },
        {"type": "custom_tool_call_output", "call_id": "d", "output": "2"},
        {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "h"}]},
        {"type": "message", "role": "user", "content": "So?"},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": PARAMETERS, "strict": True},
        {
            "type": "namespace",
            "name": "n",
            "description": "d",
            "tools": [{"type": "custom", "name": "g", "format": LARK}],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": {"type": "function", "name": "f"},
    "parallel_tool_calls": False,
    "text": {"format": {"type": "text"}},
    "reasoning": {},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "metadata": {"a": "b"},
    "max_output_tokens": 5,
    "store": False,
    "stream": False,
}
MESSAGES: Any = {
    "max_tokens": 5,
    "system": [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "Yo"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1", "is_error": True}]},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "adaptive"},
    "output_config": {},
    "metadata": {"user_id": "me"},
    "stop_sequences": ["x"],
    "stream": False,
}
CHAT: Any = {
    "model": None,
    "messages": [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "user", "content": "So?", "name": "me"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": PARAMETERS}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "max_tokens": 5,
    "temperature": 0.5,
    "stop": ["x"],
    "logprobs": True,
    "top_logprobs": 1,
    "logit_bias": {"5": 1},
    "n": 2,
    "stream": False,
}
COMPLETION: Any = {
    "model": None,
    "prompt": ["a", "b"],
    "max_tokens": 5,
    "echo": True,
    "logprobs": 1,
    "stop": "x",
    "seed": 1,
    "logit_bias": {"5": 1},
    "stream_options": None,
    "stream": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in JSON data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


CALLS = [
    ("/v1/responses", RESPONSES),
    ("/v1/messages", MESSAGES),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", COMPLETION),
]


@pytest.fixture
def roomy(server: Server) -> Server:
    """A context that is long enough for the description of the tool."""
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=2048)
    return server


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_the_whole_bodies_are_right(roomy: Server, path: str, body: Any) -> None:
    answer = roomy.post(path, body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "body"), CALLS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_place_is_no_fault_of_the_server(roomy: Server, path: str, body: Any, data: st.DataObject) -> None:
    changed = copy.deepcopy(body)
    *parents, last = data.draw(st.sampled_from(list(places(body))))
    place = changed
    for key in parents:
        place = place[key]
    if data.draw(st.booleans()):
        place[last] = data.draw(JSON)
    else:
        del place[last]
    changed["stream"] = data.draw(st.booleans()) if last != "stream" else changed.get("stream")
    answer = roomy.post(path, changed)
    if answer.status_code == 200:
        assert '"error"' not in answer.text.replace('"error":null', "")
        return
    assert answer.status_code in (400, 404), answer.text
    error = json.loads(answer.text)["error"]
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")
