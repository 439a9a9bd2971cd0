"""What the server gave out, it takes back, and what agents send beside it, in chats."""

from typing import Any

import msgspec
import openai
import pytest

from app.core.request import FinishReason
from tests.api.conftest import MODEL, Server
from tests.api.fake_engine import READY, say
from tests.api.test_responses import ADD, end, thinks, turns  # noqa: F401 - thinks is a fixture

HI: Any = {"role": "user", "content": "Hi"}
TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("add", "sub")]
pytestmark = pytest.mark.usefixtures("thinks")


@pytest.fixture
def client(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (ADD, '"arguments": {"a": 1}'),
        ('<tool_call>\n{"name": "add", "arguments": {"city": "Par', '"arguments": {"city": "Par'),
        ('<tool_call>\n{"name": "add", "arguments": {"ci', '"arguments": {'),
        ('<tool_call>\n{"name": "add", "arguments": "Paris"}\n</tool_call>', "Paris"),
        ('<tool_call>\n{"name": "not a name!", "arguments": {}}\n</tool_call>', "not a name!"),
        (f"<think>Hm</think>Yo\n{ADD}", "Yo\n<tool_call>"),
        ("<think>Hm", ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_was_given_out_is_taken_back(
    client: openai.OpenAI, server: Server, said: str, told: str, stream: bool
) -> None:
    server.engine.script = say(said, reason=FinishReason.LENGTH)
    if stream:
        with client.chat.completions.stream(model=MODEL, messages=[HI], tools=TOOLS, max_tokens=999) as events:
            message = [event.snapshot for event in events if event.type == "chunk"][-1].choices[0].message
    else:
        message = client.chat.completions.create(model=MODEL, messages=[HI], tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": None} for call in message.tool_calls or []]
    history: Any = [HI, message.model_dump(), *results, HI]
    answer = server.post("/v1/chat/completions", {"messages": history, "tools": TOOLS, "n": 1})
    assert (answer.status_code, answer.headers.get("X-Ignored-Fields")) == (200, None), answer.text
    given = turns(server.engine.last_command().prompt_token_ids)
    assert told in next(content for role, content in given if role == "assistant")
    assert len(results) == sum("<tool_response>" in content for _, content in given)


def test_a_refusal_is_the_text_of_its_message(server: Server) -> None:
    history = [HI, {"role": "assistant", "content": None, "refusal": "No."}, HI]
    assert server.post("/v1/chat/completions", {"messages": history}).status_code == 200
    assert turns(server.engine.last_command().prompt_token_ids)[1] == ("assistant", "No.")


@pytest.mark.parametrize("name", ["x" * 128, "mcp__files__read-file", "files.read"])
def test_a_request_of_a_coding_agent(server: Server, name: str) -> None:
    function = {
        "name": name,
        "description": "Reads a file",
        "strict": True,
        "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    }
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}, "index": 0}
    answer = server.post(
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a", "cache_control": None}]},
                {"role": "user", "content": "b", "name": "ann"},
                {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "c", "annotations": []},
                {"role": "tool", "tool_call_id": "call_1", "name": name, "content": None},
                {"role": "assistant", "content": None},
                HI,
            ],
            "tools": [{"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning_effort": "xhigh",
            "max_completion_tokens": 9,
            "stream": True,
            "stream_options": {"include_usage": True},
            "store": False,
            "metadata": {"a": "b"},
        },
    )
    assert (answer.status_code, answer.headers.get("X-Ignored-Fields")) == (200, None), answer.text
    given = turns(server.engine.last_command().prompt_token_ids)
    assert [role for role, _ in given] == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert "cache_control" not in str(given)
    assert "strict" not in str(given)


def test_only_the_allowed_tools_can_be_called(client: openai.OpenAI, server: Server) -> None:
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=2048)
    server.engine.script = end(ADD)
    allowed: Any = {"tools": [{"type": "function", "function": {"name": "add"}}]}
    for mode in ("auto", "required"):
        choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, **allowed}}
        answer = client.chat.completions.create(model=MODEL, messages=[HI], tools=TOOLS, tool_choice=choice)
        assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["add"]
        sent = server.engine.last_command()
        told = turns(sent.prompt_token_ids)[0][1]
        assert ("add" in told, "sub" in told) == (True, False)
        assert ('"add"' in sent.sampling.grammar or "add" in sent.sampling.grammar) == (mode == "required")
        assert "sub" not in sent.sampling.grammar


def test_every_answer_has_the_same_fingerprint(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=[HI])
    events = list(client.chat.completions.create(model=MODEL, messages=[HI], stream=True))
    text = client.completions.create(model=MODEL, prompt="Hi")
    found = {answer.system_fingerprint for answer in (whole, *events, text)}
    assert len(found) == 1
    assert found.pop().startswith("fp_")
