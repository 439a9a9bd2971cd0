"""Anthropic's client and OpenAI's Responses against a real process with the real model: whole and streamed."""

from typing import Any

import anthropic
import openai
from tokenizers import Tokenizer

from app.checkpoint.source import find_model
from tests.server.process import Server

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "Name the capital of France."
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


def test_a_budget_of_reasoning_changes_no_other_token(server: Server) -> None:
    """Reasoning and answer are those of completions of the same tokens, with the closing marker in between."""
    asked = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "<think>"}]
    chat = {"messages": asked, "continue_final_message": True}
    sampling = {"temperature": 0.8, "seed": 7, "ignore_eos": True}
    tokenizer = Tokenizer.from_file(str(find_model("embedded") / "tokenizer.json"))
    ids = {tokenizer.decode([token], skip_special_tokens=False): token for token in range(tokenizer.get_vocab_size())}

    def tokenize(body: dict[str, Any]) -> list[int]:
        return list(server.post("/tokenize", body).json()["tokens"])

    def complete(prompt: list[int], max_tokens: int) -> tuple[str, list[int]]:
        body = {"prompt": prompt, "max_tokens": max_tokens, "logprobs": 0, **sampling}
        (choice,) = server.post("/v1/completions", body).json()["choices"]
        return choice["text"], [ids[name] for name in choice["logprobs"]["tokens"]]

    prompt, closing = tokenize(chat), tokenize({"prompt": "</think>", "add_special_tokens": False})
    thought, thoughts = complete(prompt, 12)
    answer, _ = complete([*prompt, *thoughts, *closing], 20)
    limits = {"thinking_token_budget": 12, "max_tokens": 32 + len(closing)}
    told = server.post("/v1/chat/completions", {**chat, **sampling, **limits}).json()
    message = told["choices"][0]["message"]
    assert message["reasoning_content"] == thought.rstrip("\n")
    assert message["content"] == answer.lstrip("\n")
    assert told["usage"]["completion_tokens"] == limits["max_tokens"]
