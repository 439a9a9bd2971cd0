"""The whole service, as a client meets it: a real process, a real socket, the real model."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests import web
from tests.patience import wait_until
from tests.server.process import Server

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_it_answers_a_real_question_streamed_and_not(server: Server) -> None:
    with client(server) as api:
        model = api.models.list().data[0].id
        answer = api.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=30)
        text = answer.choices[0].message.content
        assert text is not None
        assert "Paris" in text
        assert answer.choices[0].finish_reason == "stop"
        chunks = list(
            api.chat.completions.create(
                model=model,
                messages=QUESTION,
                temperature=0,
                max_tokens=30,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


async def test_many_clients_at_once_get_what_each_gets_alone(server: Server) -> None:
    words = ["red", "blue", "one", "seven", "house", "river", "moon", "bread", "Die", "été", "猫", "🙂"]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:

        async def complete(index: int) -> str:
            stream = await api.completions.create(
                model="SmolLM2-135M-Instruct",
                prompt=words[index],
                max_tokens=24,
                seed=index,
                stream=True,
                temperature=0.8,
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        crowd = await asyncio.gather(*(complete(index) for index in range(len(words))))
        alone = [await complete(index) for index in range(len(words))]
    assert crowd == alone
    assert not any("\ufffd" in text.rstrip("\ufffd") for text in crowd)  # `max_tokens` may cut an emoji


def test_a_client_that_goes_away_is_aborted_and_its_blocks_are_free(server: Server) -> None:
    body = json.dumps({"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        received = b""
        while received.count(b"data:") < 3:
            received += connection.recv(65536)
        assert server.metric("num_requests_running") == 1
    finished = 'paceline_request_success_total{finished_reason="abort"}'
    wait_until(lambda: finished in server.get("/metrics").text)
    wait_until(lambda: server.metric("num_requests_running") == 0 and server.metric("kv_cache_usage_ratio") == 0)


def test_a_whole_answer_is_aborted_too(server: Server) -> None:
    before = server.metric("generation_tokens_total")
    with pytest.raises(httpx.ReadTimeout):
        web.post(
            f"{server.url}/v1/completions",
            json={"prompt": "Once", "max_tokens": 1900, "ignore_eos": True},
            timeout=httpx.Timeout(5, read=0.5),
        )
    wait_until(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("generation_tokens_total") - before < 500


def test_a_shared_prefix_is_found_again(server: Server) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 30
    usages = [server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).json()["usage"] for _ in range(2)]
    assert usages[0]["prompt_tokens_details"]["cached_tokens"] == 0
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] > usages[1]["prompt_tokens"] - 17


def test_choices_differ_and_the_first_is_what_the_seed_alone_gives(server: Server) -> None:
    body = {"prompt": "My favourite animal is", "max_tokens": 12, "temperature": 1.0, "seed": 5}
    one = server.post("/v1/completions", body).json()
    three = server.post("/v1/completions", {**body, "n": 3}).json()
    texts = [choice["text"] for choice in three["choices"]]
    assert texts[0] == one["choices"][0]["text"]
    assert len(set(texts)) == 3
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] >= 12


class Person(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    age: int
    hobbies: Annotated[list[Literal["chess", "skiing", "music"]], Field(max_length=3)]


def test_a_grammar_that_nothing_matches_is_its_senders_error_alone(server: Server) -> None:
    prompt = {"prompt": "The same words again. " * 30, "max_tokens": 1}
    server.post("/v1/completions", prompt)
    for grammar, words in (("start: start", "no text matches it"), ('start: "a" start', "no text matches the grammar")):
        answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 9, "guided_grammar": grammar})
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    usage = server.post("/v1/completions", prompt).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 100  # nobody else has lost anything


def test_a_model_says_what_a_schema_wants_beside_others(server: Server) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> None:
        messages = [{"role": "user", "content": "Who is Ann?"}]
        options = {
            "model": "SmolLM2-135M-Instruct",
            "messages": messages,
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": 150,
        }
        if seed % 3 == 0:
            await client.chat.completions.create(**options | {"max_tokens": 20})
            return
        answer = await client.chat.completions.parse(response_format=Person, **options)
        assert isinstance(answer.choices[0].message.parsed, Person)
        assert answer.choices[0].finish_reason == "stop"

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
            await asyncio.gather(*(ask(client, seed) for seed in range(6)))

    asyncio.run(run())


def test_echo_with_logprobs_scores_a_text_as_lm_eval_reads_it(server: Server) -> None:
    context, continuation = "The capital of France is", " Paris"
    ids = [server.post("/tokenize", {"prompt": text}).json()["tokens"] for text in (context, context + continuation)]
    for max_tokens in (0, 1):
        body = {"prompt": ids[1], "max_tokens": max_tokens, "echo": True, "logprobs": 1, "temperature": 0}
        logprobs = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
        end = len(ids[1])
        values, tops = logprobs["token_logprobs"][len(ids[0]) : end], logprobs["top_logprobs"][len(ids[0]) : end]
        assert [value == max(top.values()) for value, top in zip(values, tops, strict=True)] == [True]  # it is greedy
        assert logprobs["token_logprobs"][0] is None
        assert len(logprobs["tokens"]) == end + max_tokens
        assert "".join(logprobs["tokens"][:end]) == context + continuation


def test_one_long_prompt_does_not_stall_a_stream(server: Server) -> None:
    """Not a timing test: other streams must get tokens while the long prompt is being computed."""
    long_prompt = {"prompt": [7] * 1200, "max_tokens": 1}
    with (
        ThreadPoolExecutor() as pool,
        web.stream(
            "POST",
            f"{server.url}/v1/completions",
            json={"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True},
        ) as stream,
    ):
        lines = stream.iter_lines()
        for _ in range(6):
            next(lines)
        answer = pool.submit(server.post, "/v1/completions", long_prompt)
        during = 0
        for line in lines:
            if answer.done():
                break
            during += line.startswith("data:")
    assert during > 5
