"""What the service survives, and how it ends, with real processes and a tiny model."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import httpx
import pytest

from tests import web
from tests.checkpoint.conftest import write_gguf
from tests.patience import PATIENCE, wait_until
from tests.server.process import Server, free_ports, popen, running_server


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    """A server whose processes are stopped and killed."""
    with running_server("--model", str(tiny_model), "--step-timeout", "3") as running:
        yield running


BODY = {"prompt": "Once upon a time", "max_tokens": 1000, "temperature": 0, "ignore_eos": True, "stream": True}
LONG = {**BODY, "max_tokens": 30000}
"""More than anything that is done meanwhile takes."""


@contextmanager
def begun(server: Server, body: Any) -> Iterator[Iterator[str]]:
    """A stream that has sent its first token; gives the rest of its events."""
    with web.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: "))
        next(lines)
        yield lines


def text(events: list[str]) -> str:
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def engines(server: Server) -> float:
    return server.metric("engine_restarts_total")


def test_an_engine_that_hangs_is_ended_and_replaced(server: Server) -> None:
    before, engine = engines(server), server.children()["engine"]
    with begun(server, BODY) as lines:
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: server.get("/health/live").json() == {"status": "stuck"})
        assert server.get("/health/live").status_code == 503
        server.wait_for("the engine has been silent for .* what its threads are doing")
        assert text(["{}", *lines][1:])
    assert engines(server) == before + 1
    wait_until(lambda: server.get("/health/live").status_code == 200)


def test_an_engine_that_hangs_while_there_is_nothing_to_do_is_replaced(server: Server) -> None:
    before, engine = engines(server), server.children()["engine"]
    wait_until(lambda: server.metric("num_requests_running") == 0)
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: server.get("/health/live").json() == {"status": "stuck"})
    answer = server.post("/v1/completions", {**BODY, "max_tokens": 2, "stream": False})  # the next one has it
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert engines(server) == before + 1
    assert server.children()["engine"] != engine


def test_the_engine_says_what_its_threads_do(server: Server) -> None:
    os.kill(server.children()["engine"], signal.SIGUSR1)
    server.wait_for(r"server\.py\", line \d+ in run")


def test_an_api_worker_that_dies_is_replaced_and_its_work_is_ended(server: Server) -> None:
    with begun(server, LONG) as lines:
        os.kill(server.children()["api"], signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    wait_until(lambda: server.get("/health/ready").status_code == 200)  # the socket has waited for it
    short = server.post("/v1/completions", {**BODY, "max_tokens": 2, "stream": False})
    assert short.json()["usage"]["completion_tokens"] == 2
    wait_until(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_cache_usage_ratio") == 0


def test_an_api_worker_that_hangs_is_replaced(server: Server) -> None:
    hung = server.children()["api"]
    os.kill(hung, signal.SIGSTOP)
    server.wait_for("API worker 0 has been silent for .* what its threads are doing")
    short = server.post("/v1/completions", {**BODY, "max_tokens": 2, "stream": False})  # the socket has waited for it
    assert short.json()["usage"]["completion_tokens"] == 2
    assert server.children()["api"] != hung


def test_a_restart_counts_although_the_api_worker_died_with_the_engine(server: Server) -> None:
    before, children = engines(server), server.children()
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.get("/health/ready").status_code == 200)
    assert engines(server) == before + 1


def test_sigterm_lets_streams_end_and_refuses_new_requests(tiny_model: Path) -> None:
    with popen("-m", "app.cli", "serve", "--port", "0", "--model", str(tiny_model)) as process:
        server = Server(process)
        server.url = server.wait_for(r"ready at (http://\S+)")[1]
        engine = server.children()["engine"]
        with begun(server, BODY) as lines:
            os.kill(engine, signal.SIGSTOP)  # so that the stream lasts for as long as needed
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/health/ready").json() == {"status": "draining"})
            refused = server.post("/v1/completions", BODY)
            assert refused.status_code == 503
            assert refused.headers["connection"] == "close"
            assert int(refused.headers["retry-after"]) > 0
            os.kill(engine, signal.SIGCONT)
            assert sum(1 for _ in lines) == BODY["max_tokens"]  # less the first, and [DONE]
        assert process.wait(timeout=PATIENCE) == 0


def test_a_second_signal_ends_now(tiny_model: Path) -> None:
    with popen("-m", "app.cli", "serve", "--port", "0", "--model", str(tiny_model)) as process:
        server = Server(process)
        server.url = server.wait_for(r"ready at (http://\S+)")[1]
        with begun(server, LONG) as lines:
            process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            process.send_signal(signal.SIGTERM)
            events = list(lines)
        assert events[-1] == "[DONE]"
        assert "shutting down" in json.loads(events[-2])["error"]["message"]
        assert process.wait(timeout=PATIENCE) == 1


def test_sigterm_ends_at_once_what_still_converts_its_model(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    model = write_gguf(tmp_path / "odd.gguf", gguf.GGMLQuantizationType.IQ4_NL)
    arguments = ("-m", "app.cli", "serve", "--port", str(port), "--model", str(model))
    with popen(*arguments, XDG_CACHE_HOME=str(tmp_path)) as process:
        server = Server(process)
        server.wait_for(r"converting odd.gguf.* loading transformers")
        converter = server.children()["checkpoint"]
        with pytest.raises(httpx.ConnectError):  # rather than to wait for an answer
            web.get(f"http://127.0.0.1:{port}/health/live")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        wait_until(lambda: has_ended(converter))
        folders = [path for path in tmp_path.glob("paceline/models/odd*") if path.is_dir()]
        assert not folders  # it did not end because it was done


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for one service's temporary files. Its path is short, because sockets are made in it."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second: it ended between opening and reading
        return True
    return state == "Z"  # nobody may have waited for it


@pytest.mark.parametrize(
    "before",
    [{}, {"engine": signal.SIGSTOP, "api": signal.SIGSTOP}, {"engine": signal.SIGKILL}, {"api": signal.SIGKILL}],
    ids=str,
)  # fmt: skip
def test_nothing_is_left_when_the_supervisor_is_killed(temporary: Path, before: dict[str, signal.Signals]) -> None:
    with popen("-m", "app.cli", "serve", "--port", "0", "--worker", "echo", TMPDIR=str(temporary)) as process:
        server = Server(process)
        server.wait_for(r"ready at")
        children = server.children()
        assert set(children) == {"engine", "api"}
        (folder,) = temporary.glob("paceline-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        for name, number in before.items():
            os.kill(children[name], number)
        if signal.SIGKILL in before.values():
            server.wait_for("starting it again")
        process.kill()
        process.wait()
        wait_until(lambda: all(map(has_ended, children.values())))
        wait_until(lambda: not folder.exists())


def test_nothing_is_left_when_the_supervisor_is_killed_while_its_children_start(temporary: Path) -> None:
    with popen("-m", "app.cli", "serve", "--port", "0", "--worker", "echo", TMPDIR=str(temporary)) as process:
        server = Server(process)
        wait_until(lambda: set(server.children()) == {"engine", "api"})
        children = server.children()
        (folder,) = temporary.glob("paceline-*")
        process.kill()
        process.wait()
        wait_until(lambda: all(map(has_ended, children.values())))
        assert not folder.exists()


def test_an_engine_that_cannot_start_again_ends_the_service(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    arguments = ("--port", "0", "--model", str(tmp_path), "--max-restarts", "1", "--max-model-len", "512")
    with popen("-m", "app.cli", "serve", *arguments) as process:
        server = Server(process)
        server.wait_for(r"ready at")
        (tmp_path / "config.json").unlink()
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for(r"the engine ended with exit code 2: .* has no config.json, 2 times in a row")
        assert process.wait(timeout=PATIENCE) == 1


def test_each_api_worker_resumes_its_own_streams() -> None:
    with running_server("--worker", "echo", "--api-workers", "2", "--max-num-seqs", "8") as crowd:
        wait_until(lambda: all(crowd.get("/health/ready").is_success for _ in range(10)))
        has_begun = threading.Barrier(9)

        def ask(prompt: str) -> str:
            with begun(crowd, {"prompt": prompt, "max_tokens": 5000, "stream": True}) as lines:
                has_begun.wait(PATIENCE)
                return text(list(lines))

        prompts = [f"{index} and " for index in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, prompt) for prompt in prompts]
            has_begun.wait(PATIENCE)
            os.kill(crowd.children()["engine"], signal.SIGKILL)
            rests = [answer.result() for answer in answers]
        for prompt, rest in zip(prompts, rests, strict=True):
            assert echoed(crowd, prompt, 5000).endswith(rest)
            assert len(rest) > 5000
        assert crowd.metric("engine_restarts_total") == 1
        assert crowd.metric("generation_tokens_total") == 8 * 5000


def echoed(server: Server, prompt: str, num_tokens: int) -> str:
    """What a worker that repeats the prompt has to say."""
    tokens = server.post("/tokenize", {"prompt": prompt}).json()["tokens"]
    times, more = divmod(num_tokens, len(tokens))
    return prompt * times + server.post("/detokenize", {"tokens": tokens[:more]}).json()["prompt"]
