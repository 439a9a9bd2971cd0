"""What gpt-oss writes in channels reaches all endpoints in their own forms."""

import json
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from app.core.request import FinishReason
from app.text.harmony import ANALYSIS
from app.text.message_format import MessageFormat
from app.text.tools.formats import HARMONY
from tests.api.conftest import IM_END, MODEL, Server
from tests.api.fake_engine import READY, say
from tests.api.test_openai_client import matcher_of
from tests.text.test_harmony import CALL, FINAL, THINKS

HI: Any = [{"role": "user", "content": "2 + 2?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
THOUGHT, ANSWER = "User asks for 2 + 2.", "2 + 2 = 4."


@pytest.fixture(autouse=True)
def channels(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model writes in channels. Its markers are bytes here."""
    monkeypatch.setitem(vars(server.service), "message_format", MessageFormat(HARMONY, ANALYSIS))
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=4000)


def says(server: Server, text: str, per_output: int) -> None:
    server.engine.script = say([*text.encode(), IM_END], per_output=per_output, reason=FinishReason.STOP)


@pytest.mark.parametrize("per_output", [1, 7, 999])
def test_answers_and_calls_of_chats(server: Server, per_output: int) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        says(server, THINKS + FINAL, per_output)
        whole = client.chat.completions.create(model=MODEL, messages=HI)
        message: Any = whole.choices[0].message
        assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
        assert whole.usage.completion_tokens_details.reasoning_tokens == len(THINKS)
        says(server, THINKS + CALL, per_output)
        chunks: list[Any] = list(client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
        calls = [call.function for delta in deltas for call in delta.tool_calls or []]
        assert [call.name for call in calls if call.name] == ["weather"]
        assert json.loads("".join(call.arguments or "" for call in calls)) == {"city": "Köln"}
        assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_answers_and_calls_of_other_endpoints(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        says(server, THINKS + FINAL, 7)
        response: Any = client.responses.create(model=MODEL, input="2 + 2?")
        assert response.output_text == ANSWER
        assert response.output[0].type == "reasoning"
        assert THOUGHT in response.output[0].to_json()
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as other:
        says(server, THINKS + CALL, 7)
        tools: Any = [{"name": "weather", "input_schema": SCHEMA}]
        blocks: Any = other.messages.create(model=MODEL, max_tokens=200, messages=HI, tools=tools).content
        assert [block.type for block in blocks] == ["thinking", "tool_use"]
        assert (blocks[0].thinking, blocks[1].input) == (THOUGHT, {"city": "Köln"})


def test_a_format_is_asked_of_the_answer_alone(server: Server) -> None:
    format_ = {"type": "json_object"}
    final = FINAL.replace(ANSWER, '{"sum": 4}')
    says(server, THINKS + final, 7)
    answer = server.post("/v1/chat/completions", {"messages": HI, "response_format": format_})
    message = answer.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ('{"sum": 4}', THOUGHT)
    grammar = server.engine.commands.get_nowait().sampling.grammar
    for text, is_whole in [(THINKS + final, True), (final, True), ('{"sum": 4}', False), (THINKS + FINAL, False)]:
        matcher = matcher_of(server, grammar)
        assert (matcher.consume_tokens([*text.encode()]) and matcher.is_accepting()) is is_whole
