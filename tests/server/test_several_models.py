"""Several models in one service, over HTTP: which are awake, who answers, and what the death of one does to others."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests import web
from tests.models.adapters import write_adapter
from tests.patience import PATIENCE, wait_until
from tests.server.keys import digest, write_keys
from tests.server.process import Server, running_server

KEY = "sk-several"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PROMPT = "one two three"


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("several")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    red = write_adapter(base, folder / "red", seed=1)
    tiny = {"model": str(tiny_model), "max_model_len": 512, "dtype": "float32"}
    models = {
        "echo": {"model": "embedded", "worker": "echo", "num_kv_blocks": 600},
        "second": {"model": "embedded", "worker": "echo", "idle_timeout": 1.0},
        "tiny": {**tiny, "lora": {"red": str(red)}},
        "broken": {**tiny, "max_model_len": 10**6},
    }
    config = folder / "config.yaml"
    common = {"load_models": "asked", "batch_folder": str(folder / "batches")}
    config.write_text(yaml.safe_dump({"models": models, **common}, sort_keys=False))
    keys = write_keys(folder, {"user": {"keys": [digest(KEY)]}})
    with running_server("--api-keys", str(keys), "--azure-paths", PACELINE_CONFIG=str(config)) as running:
        yield running


def post(server: Server, model: str | None, path: str = "/v1/completions", **fields: object) -> httpx.Response:
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, **({"model": model} if model else {}), **fields}
    return web.post(server.url + path, json=body, headers=HEADERS)


def get(server: Server, path: str) -> httpx.Response:
    return web.get(server.url + path, headers=HEADERS)


def states(server: Server) -> dict[str, str]:
    return {model["id"]: model["state"] for model in get(server, "/v1/models").json()["data"]}


def engine_of(server: Server, name: str) -> psutil.Process:
    """The process of a model's engine. Its settings came through stdin, so its environment does not say it."""
    address = next(
        part
        for child in psutil.Process(server.process.pid).children()
        if "api.process" in " ".join(child.cmdline())
        for before, part in zip(child.cmdline(), child.cmdline()[1:], strict=False)
        if before == name
    )
    return next(
        child
        for child in psutil.Process(server.process.pid).children()
        if "engine.server" in " ".join(child.cmdline()) and address in child.cmdline()
    )


def test_models_are_loaded_when_they_are_asked_for(server: Server) -> None:
    """This one comes first: all of them sleep, and none was asked for."""
    assert get(server, "/health/ready").status_code == 200
    assert states(server) == dict.fromkeys(("echo", "second", "tiny", "broken"), "asleep")
    for refused in (
        web.post(f"{server.url}/v1/completions", json={"model": "echo", "prompt": "a"}),
        post(server, "nothing like it"),
    ):
        assert refused.status_code in (401, 404)
    assert set(states(server).values()) == {"asleep"}
    with ThreadPoolExecutor(2) as pool:  # the second one waits for the same engine
        answers = list(pool.map(lambda _: post(server, "second"), range(2)))
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [PROMPT + "one"] * 2
    assert [answer.json()["model"] for answer in answers] == ["second"] * 2
    assert states(server)["echo"] == "asleep"
    assert get(server, "/v1/models/second").json()["max_model_len"] == 8192


def test_a_model_that_nobody_wants_sleeps_and_is_woken_by_its_name(server: Server) -> None:
    assert post(server, "second").status_code == 200
    wait_until(lambda: states(server)["second"] == "asleep")
    text = get(server, "/metrics").text
    assert 'paceline_engine_restarts_total{model="second"} 0.0' in text
    assert 'paceline_model_state{model="second",state="asleep"} 1.0' in text
    assert 'paceline_model_state{model="second",state="ready"} 0.0' in text


def start_batch(server: Server, *names: str) -> dict[str, str]:
    """A batch with one request for each of these models."""
    requests = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "model": name}}
        for number, name in enumerate(names)
    ]
    file = ("requests.jsonl", "\n".join(map(json.dumps, requests)))
    made = web.post(f"{server.url}/v1/files", files={"file": file}, data={"purpose": "batch"}, headers=HEADERS).json()
    about = {"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch: dict[str, str] = web.post(f"{server.url}/v1/batches", json=about, headers=HEADERS).json()
    return batch


def test_a_batch_is_for_several_models_and_wakes_them(server: Server) -> None:
    names = ["second", "red", "tinny", "echo", "broken", "second"]
    batch = start_batch(server, *names)

    def counts() -> dict[str, int]:
        told: dict[str, int] = get(server, f"/v1/batches/{batch['id']}").json()["request_counts"]
        return told

    # The model that cannot be loaded is waited for, beside the others.
    wait_until(lambda: counts() == {"total": 6, "completed": 4, "failed": 1})
    after = start_batch(server, "echo")  # which it does not hold up
    wait_until(lambda: get(server, f"/v1/batches/{after['id']}").json()["status"] == "completed")
    assert get(server, f"/v1/batches/{batch['id']}").json()["status"] == "in_progress"
    web.post(f"{server.url}/v1/batches/{batch['id']}/cancel", headers=HEADERS)
    wait_until(lambda: get(server, f"/v1/batches/{batch['id']}").json()["status"] == "cancelled")
    ended = get(server, f"/v1/batches/{batch['id']}").json()
    answers = get(server, f"/v1/files/{ended['output_file_id']}/content").text.splitlines()
    told = {one["custom_id"]: one["response"]["body"]["model"] for one in map(json.loads, answers)}
    assert told == {"0": "second", "1": "red", "3": "echo", "5": "second"}
    (unknown,) = get(server, f"/v1/files/{ended['error_file_id']}/content").text.splitlines()
    assert json.loads(unknown)["response"]["body"]["error"]["code"] == "model_not_found"


def test_the_nearest_name_is_told(server: Server) -> None:
    error = post(server, "tinny").json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "did you mean tiny?" in error["message"]
    assert post(server, None, "/openai/deployments/ecko/completions").status_code == 404


def test_adapters_and_other_fields_go_to_their_model(server: Server) -> None:
    plain, red = (post(server, name, max_tokens=12).json() for name in ("tiny", "red"))
    assert (plain["model"], red["model"]) == ("tiny", "red")
    assert plain["choices"][0]["text"] != red["choices"][0]["text"]
    served = {model["id"]: model["parent"] for model in get(server, "/v1/models").json()["data"]}
    assert served["red"] == "tiny"
    assert post(server, None, "/openai/deployments/echo/completions").json()["model"] == "echo"
    first = post(server, None).json()
    assert first.get("model") == "echo", first  # the first one


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_the_others(server: Server) -> None:
    for _ in range(2):
        refusal = post(server, "broken")
        assert refusal.status_code == 503
        assert "max_model_len" in refusal.json()["error"]["message"]
    assert states(server)["broken"] == "failed"
    assert post(server, "echo").status_code == 200
    assert get(server, "/health/live").status_code == 200


def test_the_death_of_one_does_not_touch_the_other(server: Server) -> None:
    assert post(server, "tiny").status_code == 200
    before, alone = engine_of(server, "echo").pid, post(server, "tiny", max_tokens=300, ignore_eos=True).json()
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=asked, headers=HEADERS, timeout=PATIENCE, trust_env=False) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        text = json.loads(next(lines))["choices"][0]["text"]
        os.kill(engine_of(server, "tiny").pid, signal.SIGKILL)
        assert post(server, "echo").status_code == 200
        for line in lines:
            if line != "[DONE]":
                text += json.loads(line)["choices"][0]["text"]
    assert text == alone["choices"][0]["text"]  # it went on with the next engine
    assert engine_of(server, "echo").pid == before


def test_metrics_have_the_model_as_a_label(server: Server) -> None:
    before = get(server, "/metrics").text
    assert post(server, "echo").status_code == 200
    wait_until(lambda: generated(server, "echo") >= 4)
    assert 'paceline_request_success_total{finished_reason="length",model="echo"}' in get(server, "/metrics").text
    assert before.count("# TYPE paceline_num_requests_running gauge") == 1


def generated(server: Server, model: str) -> float:
    line = next(
        line
        for line in get(server, "/metrics").text.splitlines()
        if line.startswith(f'paceline_generation_tokens_total{{model="{model}"}}')
    )
    return float(line.rpartition(" ")[2])
