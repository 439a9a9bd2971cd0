"""Anthropic's client and OpenAI's Responses against a real process with the real model: whole and streamed."""

from typing import Any

import anthropic
import openai

from tests.server.process import Server

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


def test_messages(server: Server) -> None:
    options: Any = {"model": MODEL, "max_tokens": 30, "extra_body": {"temperature": 0}}
    asked: Any = [{"role": "user", "content": QUESTION}]
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        whole = client.messages.create(messages=asked, **options)
        (block,) = whole.content
        assert block.type == "text"
        assert "Paris" in block.text
        assert whole.stop_reason == "end_turn"
        counted = client.messages.count_tokens(model=MODEL, messages=asked).input_tokens
        assert counted == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        with client.messages.stream(messages=asked, **options) as stream:
            assert "".join(stream.text_stream) == block.text
            assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
        history = [*asked, {"role": "assistant", "content": whole.content}, *asked]
        tools: Any = {"tools": [TOOL], "tool_choice": {"type": "any"}}
        with client.messages.stream(messages=history, **{**options, "max_tokens": 200}, **tools) as stream:
            message = stream.get_final_message()
        assert message.stop_reason == "tool_use"
        for call in message.content:
            assert call.type == "tool_use"
            assert call.input["city"] in ("Paris", "Rome")
            assert 1 <= call.input["days"] <= 7


def test_a_conversation_of_responses(server: Server) -> None:
    options: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 30}
    again = "Repeat your last answer word by word."
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        first = client.responses.create(input=QUESTION, **options)
        assert "Paris" in first.output_text
        assert first.status == "completed"
        whole = client.responses.create(input=again, previous_response_id=first.id, **options)
        with client.responses.stream(input=again, previous_response_id=first.id, **options) as stream:
            events = list(stream)
            streamed = stream.get_final_response()
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert deltas == streamed.output_text == whole.output_text
        # It is the conversation that is answered, as it would be if it had been sent whole.
        said: Any = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": again}]
        unkept = client.responses.create(input=said, store=False, **options)
        assert unkept.output_text == whole.output_text
        assert unkept.usage is not None
        assert whole.usage is not None
        assert unkept.usage.input_tokens == whole.usage.input_tokens > first.usage.input_tokens + 10
        client.responses.delete(first.id)
        assert server.get(f"/v1/responses/{first.id}").status_code == 404
