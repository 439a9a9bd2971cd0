"""How services start, and how they say why they cannot."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.lifespan.on import LifespanOn

from app.api.app import create_app
from app.checkpoint.source import find_model
from app.engine.build import build_engine
from app.errors import StartupError
from app.settings import load_settings
from tests.patience import PATIENCE, wait_until
from tests.server.process import REPOSITORY, Server, popen, run, running_server
from tests.test_settings import OF_A_SERVICE


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "/nowhere"}, "no such model"),
        ({"model": "{tmp}"}, "no config.json"),
        ({"max_model_len": "100000"}, "more than the 8192"),
        ({"num_kv_blocks": "10", "max_model_len": "2048"}, "too few"),
        ({"worker": "echo", "max_num_batched_tokens": "100"}, "less than max_num_seqs"),
        ({"block_size": "0"}, "block_size"),
        ({"device": "cuda"}, "no CUDA"),
        ({"otlp_traces_endpoint": "collector:4317"}, "otlp_traces_endpoint: URL scheme should be 'http' or 'https'"),
    ],
)
def test_what_cannot_start_says_why(flags: dict[str, str], words: str, tmp_path: Path) -> None:
    """Do in this process what the processes of a service do one after the other."""

    def start() -> None:
        settings = load_settings(**{name: value.format(tmp=tmp_path) for name, value in flags.items()})
        build_engine(settings, find_model(settings.model))

    with pytest.raises(StartupError, match=re.escape(words)):
        start()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        # The engine finds that: with code that transformers would ask for on the terminal, for an unknown model.
        (
            "config.json",
            '{"model_type": "clip", "architectures": ["AForCausalLM"], "auto_map": {"AutoModelForCausalLM": "m.A"}}',
            "(auto_map) is not run",
        ),
        # The API worker finds that.
        ("tokenizer.json", "{}", "tokenizer.json is not a usable tokenizer"),
    ],
)
def test_a_broken_model_ends_the_service_with_one_line(
    file: str, content: str, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).write_text(content)
    code, _, log = run("-m", "app.cli", "serve", "--port", "0", "--model", str(tmp_path))
    assert code == 2
    assert words in log.splitlines()[-1]
    assert log.count("error") == 1
    assert "Traceback" not in log


def test_a_pod_beside_a_service_of_the_same_name_starts(tmp_path: Path) -> None:
    """Until it looks for the model: the settings are read, and the port is that of the file."""
    config = tmp_path / "paceline.yaml"
    config.write_text("model: /nowhere\nport: 0\n")
    code, _, log = run("-m", "app.cli", "serve", PACELINE_CONFIG=str(config), **OF_A_SERVICE)
    assert (code, log) == (2, "paceline: no such model: /nowhere is no folder, no file, and no hub id like org/name\n")


def test_without_a_network_the_installation_says_so_at_once() -> None:
    """pip alone would try five times for each of its requests."""
    script = f"source scripts/lib.sh; pip=({sys.executable} -m pip); check_index"
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"Packages cannot be installed.* Is there a network\? pip says:\nERROR: .+\n", done.stderr)


def test_an_engine_that_is_killed_while_it_loads_ends_the_service() -> None:
    for command in (("app.cli", "serve", "--port", "0"), ("uvicorn", "app.main:app", "--port", "0")):
        with popen("-m", *command) as process:
            server = Server(process)
            wait_until(lambda server=server: "engine" in server.children())
            subprocess.run(["kill", "-9", str(server.children()["engine"])], check=True)
            with pytest.raises(AssertionError, match="the server ended"):
                server.wait_for("ready at|running on")
            process.wait(timeout=PATIENCE)
        assert process.returncode in (2, 3)  # the second is uvicorn's own
        assert "the engine ended with exit code -9 before it was ready" in "".join(server.log)


def test_uvicorn_runs_the_asgi_app() -> None:
    with popen("-m", "uvicorn", "app.main:app", "--port", "0", PACELINE_WORKER="echo") as process:
        server = Server(process)
        server.url = server.wait_for(r"running on (http://\S+)")[1]
        assert (
            server.post("/v1/completions", {"prompt": "again ", "max_tokens": 4}).json()["usage"]["completion_tokens"]
            == 4
        )
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("setting", "value", "words", "exit_code"),
    [
        ("MODEL", "/nowhere", "no such model", 2),
        ("MAX_MODEL_LEN", "100000", "more than the 8192", 3),  # the engine knows that; the code is uvicorn's own
    ],
)
def test_uvicorn_says_last_and_in_one_line_why_it_does_not_start(
    setting: str, value: str, words: str, exit_code: int
) -> None:
    code, _, log = run("-m", "uvicorn", "app.main:app", "--port", "0", **{f"PACELINE_{setting}": value})
    assert code == exit_code
    assert re.fullmatch(f"paceline: .*{words}.*", log.splitlines()[-1])
    assert "Traceback" not in log


async def test_any_server_is_told_in_one_line_why_the_application_does_not_start() -> None:
    """As Ray does it: it runs the lifespan with uvicorn's class, in a thread of its own."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise StartupError("the model is broken")
        yield

    app = create_app(load_settings(), lifespan)
    assert isinstance(app, FastAPI)
    told = []
    host = LifespanOn(uvicorn.Config(app, log_config=None))
    host.logger = Mock(error=told.append)
    await host.startup()
    assert host.should_exit
    assert told[0] == "the model is broken"


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
