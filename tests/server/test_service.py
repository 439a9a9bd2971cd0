"""The whole service, as a client meets it: a real process, a real socket, the real model."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from app.checkpoint.source import find_model
from app.cli import main
from app.core.step import ModelRunnerOutput
from app.worker.echo import EchoWorker
from tests.server.process import Server, popen, running_server, wait_until

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


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
    assert not any("\ufffd" in text for text in crowd)


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
        httpx.post(
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


@pytest.mark.parametrize("at_once", [True, False])
def test_one_long_prompt_does_not_stall_a_stream(server: Server, at_once: bool) -> None:
    """Not a timing test: other streams must get tokens while the long prompt is being computed."""
    long_prompt = {"prompt": [7 + at_once] * 1900, "max_tokens": 1}
    with (
        ThreadPoolExecutor() as pool,
        httpx.stream(
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


def test_several_api_workers_share_a_socket_and_count_together() -> None:
    with running_server("--worker", "echo", "--api-workers", "3") as server:
        wait_until(lambda: all(server.get("/health/ready").is_success for _ in range(10)))

        def ask(index: int) -> int:
            body = {"model": "SmolLM2-135M-Instruct", "prompt": [index + 5, 7], "max_tokens": 4}
            tokens: int = server.post("/v1/completions", body).json()["usage"]["completion_tokens"]
            return tokens

        with ThreadPoolExecutor(12) as pool:
            assert sum(pool.map(ask, range(60))) == 240
        # Whichever worker is asked.
        wait_until(lambda: all(server.metric("generation_tokens_total") == 240 for _ in range(5)))
        assert server.metric("time_to_first_token_seconds_count") == 60
        assert server.metric("num_requests_running") == 0
        listing = subprocess.run(
            ["ps", "-o", "args=", "--ppid", str(server.process.pid)], capture_output=True, text=True
        )
        assert listing.stdout.count("app.api.process") == 3


def test_uvicorn_runs_the_asgi_app() -> None:
    with popen("-m", "uvicorn", "app.main:app", "--port", "0", PACELINE_WORKER="echo") as process:
        server = Server(process)
        server.url = server.wait_for(r"running on (http://\S+)")[1]
        assert (
            server.post("/v1/completions", {"prompt": "again ", "max_tokens": 4}).json()["usage"]["completion_tokens"]
            == 4
        )
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "/nowhere"), "no such model"),
        (("--model", "{tmp}"), "no config.json"),
        (("--max-model-len", "100000"), "more than the 8192"),
        (("--num-kv-blocks", "10", "--max-model-len", "2048"), "too few"),
        (("--worker", "echo", "--max-num-batched-tokens", "100"), "less than max_num_seqs"),
        (("--block-size", "0"), "block_size"),
        (("--device", "cuda"), "no CUDA"),
        (("--otlp-traces-endpoint", "collector:4317"), "otlp_traces_endpoint: URL scheme should be 'http' or 'https'"),
    ],
)
def test_what_cannot_start_says_why(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    arguments = tuple(argument.format(tmp=tmp_path) for argument in arguments)
    with popen("-m", "app.cli", "serve", "--port", "0", *arguments) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        # With code that transformers would ask for on the terminal, for a model that it does not know by itself.
        (
            "config.json",
            '{"model_type": "clip", "architectures": ["A"], "auto_map": {"AutoModelForCausalLM": "m.A"}}',
            "(auto_map) is not run",
        ),
        ("tokenizer.json", "{}", "tokenizer.json is not a usable tokenizer"),
        ("chat_template.jinja", "{% for", "chat template is broken"),
    ],
)
def test_a_broken_model_ends_the_service_with_one_line(file: str, content: str, words: str, tmp_path: Path) -> None:
    embedded = find_model("embedded")
    for path in embedded.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).write_text(content)
    with popen("-m", "app.cli", "serve", "--port", "0", "--model", str(tmp_path)) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in log
    assert log.count("error") == 1
    assert "Traceback" not in log


def test_an_engine_that_is_killed_while_it_loads_ends_the_service() -> None:
    for command in (("app.cli", "serve", "--port", "0"), ("uvicorn", "app.main:app", "--port", "0")):
        with popen("-m", *command) as process:
            server = Server(process)
            wait_until(lambda server=server: "engine" in server.children(), seconds=30)
            subprocess.run(["kill", "-9", str(server.children()["engine"])], check=True)
            with pytest.raises(AssertionError, match="the server ended"):
                server.wait_for("ready at|running on")
            process.wait(timeout=30)
        assert process.returncode in (2, 3)  # the second is uvicorn's own
        assert "the engine ended with exit code -9 before it was ready" in "".join(server.log)


def test_uvicorn_says_in_one_line_what_is_wrong_with_the_model() -> None:
    with popen("-m", "uvicorn", "app.main:app", "--port", "0", PACELINE_MODEL="/nowhere") as process:
        _, log = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "paceline: no such model" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("content", ["port: [1", "- port", "port: \x00", "port: 99999", "nothing: 1", "\udcff"])
def test_a_broken_configuration_file_is_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "paceline.yaml"
    file.write_text(content, errors="surrogateescape")
    monkeypatch.setenv("PACELINE_CONFIG", str(file))
    monkeypatch.setattr(sys, "argv", ["paceline", "serve"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert re.fullmatch(r"paceline: (config|settings): .+\n", capsys.readouterr().err)


def test_generate_fails_with_the_requests_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_worker: object, _step: object) -> Future[ModelRunnerOutput]:
        step: Future[ModelRunnerOutput] = Future()
        step.set_exception(RuntimeError("the device is gone"))
        return step

    monkeypatch.setattr(EchoWorker, "submit", fail)
    monkeypatch.setattr(sys, "argv", ["paceline", "generate", "--worker", "echo", "--raw", "again"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 1
    assert re.search(r"^paceline: .+$", capsys.readouterr().err, re.MULTILINE)


def test_generate_without_a_server() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "app.cli", "generate", "What is the capital of France?"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Paris" in result.stdout


def test_check_model_agrees_with_transformers() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "app.cli", "check-model", "embedded"], capture_output=True, text=True, check=True
    )
    assert result.stdout.count("agrees with transformers") == 2
