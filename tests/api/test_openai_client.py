"""The client that people use, against a real socket: sync and async, streaming and not."""

import openai
import pytest
from openai.lib._parsing import type_to_response_format_param
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from app.core.request import FinishReason
from app.grammar import constraint
from tests.api.conftest import IM_END, IM_START, MODEL, Server
from tests.api.fake_engine import say

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "paceline"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_completion(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say("Hello", cached=1)
    answer = client.completions.create(model=MODEL, prompt="Hi", max_tokens=5, seed=-1, n=2)
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (0, "Hello", "length"),
        (1, "Hello", "length"),
    ]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 10, 12)
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    seeds = {server.engine.commands.get_nowait().sampling.seed for _ in range(2)}
    assert len(seeds) == 2  # choices differ
    assert (-1) % 2**63 in seeds  # and the first is the seed's own


def test_chat(client: openai.OpenAI, server: Server) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=2)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "He", "length")
    first = choice.logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("H", -0.72, [72])
    assert [top.logprob for top in first.top_logprobs] == [-0.25, -0.5]
    prompt = server.engine.last_command().prompt_token_ids
    assert prompt == [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]


class Person(BaseModel):
    name: str
    age: int | None = None


def test_structured_output(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say([*b'{"name": "Ann"}', IM_END], reason=FinishReason.STOP)
    options = {"model": MODEL, "messages": MESSAGES, "max_tokens": 50}
    answer = client.chat.completions.parse(response_format=Person, **options)
    assert answer.choices[0].message.parsed == Person(name="Ann")
    schema = client.chat.completions.create(response_format=type_to_response_format_param(Person), **options)
    assert schema.choices[0].message.content == '{"name": "Ann"}'
    grammars = [server.engine.commands.get_nowait().sampling.grammar for _ in range(2)]
    assert grammars[0] == grammars[1] == constraint.json_schema(to_strict_json_schema(Person))
    with client.chat.completions.stream(response_format=Person, **options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ann")
    client.completions.create(model=MODEL, prompt="Hi", extra_body={"guided_choice": ["a", "b"]})
    client.completions.create(model=MODEL, prompt="Hi", extra_body={"structured_outputs": {"choice": ["a", "b"]}})
    client.chat.completions.create(response_format={"type": "json_object"}, **options)
    grammars = [server.engine.commands.get_nowait().sampling.grammar for _ in range(4)]
    assert grammars[1:] == [*[constraint.choice(["a", "b"])] * 2, constraint.json_object()]


async def test_streamed_chat(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *news, last = chunks
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (21, 10)
    assert all(chunk.usage is None for chunk in news)
    for index in range(2):
        own = [chunk.choices[0] for chunk in news if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "Hello"
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]


async def test_streamed_completion(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.completions.create(model=MODEL, prompt=[72, 105], stream=True, logprobs=1)
    choices = [chunk.choices[0] async for chunk in stream]
    assert [choice.text for choice in choices] == ["H", "e", "l", "l", "o"]  # one event a token
    assert [choice.finish_reason for choice in choices] == [None] * 4 + ["length"]
    assert [choice.logprobs.text_offset for choice in choices] == [[0], [1], [2], [3], [4]]


async def test_plain_async_answers(async_client: openai.AsyncOpenAI) -> None:
    chat = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    completion = await async_client.completions.create(model=MODEL, prompt=["Hi", "Ho"])
    assert chat.choices[0].message.content == "Hello"
    assert [choice.text for choice in completion.choices] == ["Hello", "Hello"]


def test_streamed_helper_of_the_client(client: openai.OpenAI, server: Server) -> None:
    """The client's own accumulator is strict about the order and shape of chunks."""
    server.engine.script = say([*b"Hello", IM_END], reason=FinishReason.STOP)
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "Hello"


def test_what_the_client_sends_back_is_understood(client: openai.OpenAI) -> None:
    """Clients append the assistant's message as they got it, with all its empty fields."""
    message = client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message
    history = [*MESSAGES, message.model_dump(), {"role": "user", "content": [{"type": "text", "text": "And?"}]}]
    assert client.chat.completions.create(model=MODEL, messages=history).choices[0].message.content == "Hello"


def test_errors_reach_the_client_as_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=1000)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")
    assert "256" in caught.value.message
    assert "1002" in caught.value.message
