"""LoRA adapters over HTTP: a real server, OpenAI's own client, and merged weights in transformers as the oracle."""

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests import web
from tests.models.adapters import merged, write_adapter
from tests.patience import wait_until
from tests.server.keys import digest, write_keys
from tests.server.process import Server, run, running_server

OPERATOR, USER = "sk-operator", "sk-user"
PROMPT = "Write a long story about a river."
LENGTH = 24


class Adapters(NamedTuple):
    folders: dict[str, Path]
    texts: dict[str, str]
    """What transformers says to the prompt, without an adapter as `tiny`."""


@torch.inference_mode()
def text_of(model: PreTrainedModel, folder: Path) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None)
    return tokenizer.decode(tokens[0, len(prompt) :].tolist(), skip_special_tokens=False)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    folder = tmp_path_factory.mktemp("adapters")
    folders = {name: write_adapter(base, folder / name, seed) for seed, name in enumerate(("red", "blue", "green"))}
    models = {"tiny": base} | {name: merged(base, path) for name, path in folders.items()}
    return Adapters(folders, {name: text_of(model, tiny_model) for name, model in models.items()})


@pytest.fixture(scope="module")
def server(tiny_model: Path, adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tenants = {"operator": {"keys": [digest(OPERATOR)], "may_operate": True}, "user": {"keys": [digest(USER)]}}
    keys = write_keys(tmp_path_factory.mktemp("keys"), tenants)
    with running_server(
        *("--model", str(tiny_model), "--served-model-name", "tiny", "--dtype", "float32", "--api-workers", "2"),
        *("--lora", f"red={adapters.folders['red']}", "--lora", f"blue={adapters.folders['blue']}"),
        *("--lora-loading", "--max-loras", "3", "--api-keys", str(keys), "--azure-paths", "--max-model-len", "2048"),
    ) as running:
        yield running


def complete(server: Server, model: str, **options: object) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as client:
        answer = client.completions.create(
            model=model,
            prompt=PROMPT,
            max_tokens=LENGTH,
            temperature=0,
            extra_body={"ignore_eos": True, "skip_special_tokens": True},
            **options,  # type: ignore[call-overload]
        )
        assert answer.model == model
        return str(answer.choices[0].text)


def change(server: Server, action: str, key: str = OPERATOR, **body: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return web.post(f"{server.url}/v1/{action}_lora_adapter", json=body, headers=headers)


def models(server: Server) -> dict[str, str | None]:
    """The parents of what both API workers list."""
    headers = {"Authorization": f"Bearer {USER}"}

    def listed() -> list[list[dict[str, Any]]]:
        return [web.get(f"{server.url}/v1/models", headers=headers).json()["data"] for _ in range(8)]

    # The server is ready once one of them is; the other may still be about to hear of the engine.
    wait_until(lambda: all(model["max_model_len"] for listing in listed() for model in listing))
    listings = listed()
    assert listings == [listings[0]] * len(listings)
    return {entry["id"]: entry["parent"] for entry in listings[0]}


def test_the_model_names_the_adapter_and_all_run_side_by_side(server: Server, adapters: Adapters) -> None:
    assert models(server) == {"tiny": None, "red": "tiny", "blue": "tiny"}
    names = ["tiny", "red", "blue"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        texts = list(pool.map(lambda name: complete(server, name), names))
    assert texts == [adapters.texts[name] for name in names]
    assert len(set(texts)) == 3


def test_every_endpoint_that_generates_takes_the_adapters_name(server: Server) -> None:
    headers, chat = {"Authorization": f"Bearer {USER}"}, [{"role": "user", "content": "Hello"}]
    fields = {"temperature": 0, "max_tokens": 12, "messages": chat}

    def ask(path: str, body: dict[str, object]) -> dict[str, object]:
        answer = web.post(server.url + path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    texts = {}
    for name in ("tiny", "red"):
        choice = ask("/v1/chat/completions", {"model": name, **fields})["choices"][0]  # type: ignore[index]
        message = ask("/v1/messages", {"model": name, **fields})
        response = ask("/v1/responses", {"model": name, "input": "Hello", "max_output_tokens": 16, "temperature": 0})
        azure = ask(f"/openai/deployments/{name}/chat/completions", fields)
        assert (message["model"], response["model"], azure["model"]) == (name, name, name)
        texts[name] = choice["message"]["content"]
        assert message["content"][0]["text"] == texts[name] == azure["choices"][0]["message"]["content"]  # type: ignore[index]
        assert response["output"][0]["content"][0]["text"].startswith(texts[name][:20])  # type: ignore[index]
    assert texts["tiny"] != texts["red"]


def test_adapters_are_loaded_and_unloaded_while_running_and_survive_an_engine(
    server: Server, adapters: Adapters, tmp_path: Path
) -> None:
    with pytest.raises(openai.NotFoundError, match="green"):
        complete(server, "green")
    answer = change(server, "load", lora_name="green", lora_path=str(adapters.folders["green"]))
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'green' added successfully.")
    wait_until(lambda: "green" in models(server))
    assert complete(server, "green") == adapters.texts["green"]
    for name, words in (("green", "served already"), ("tiny", "served already"), ("more", "room for 3 adapters")):
        refused = change(server, "load", lora_name=name, lora_path=str(adapters.folders["green"]))
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]

    assert change(server, "unload", lora_name="blue").status_code == 200
    assert change(server, "unload", lora_name="blue").status_code == 404
    gone = shutil.copytree(adapters.folders["blue"], tmp_path / "gone")
    assert change(server, "load", lora_name="gone", lora_path=str(gone)).status_code == 200
    shutil.rmtree(gone)  # the next engine cannot load it
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0) as client:
        options = {"max_tokens": 400, "temperature": 0, "stream": True, "extra_body": {"ignore_eos": True}}
        stream = client.completions.create(model="green", prompt=PROMPT, **options)  # type: ignore[call-overload]
        text = next(stream).choices[0].text
        os.kill(server.children()["engine"], signal.SIGKILL)  # the stream goes on with another one, which has it, too
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text.startswith(adapters.texts["green"])
    wait_until(lambda: models(server) == {"tiny": None, "red": "tiny", "green": "tiny"})
    for name in ("green", "red", "tiny"):
        assert complete(server, name) == adapters.texts[name]
    server.wait_for("the adapter gone could not be loaded again")
    for name in ("blue", "gone"):
        with pytest.raises(openai.NotFoundError, match=name):
            complete(server, name)

    assert change(server, "unload", lora_name="green").status_code == 200
    assert change(server, "load", lora_name="green", lora_path=str(adapters.folders["blue"])).status_code == 200
    wait_until(lambda: complete(server, "green") == adapters.texts["blue"])  # nothing of the other one is in a cache
    metrics = web.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {USER}"}).text
    assert 'paceline_adapter_requests_total{adapter="red"}' in metrics
    assert 'paceline_adapter_tokens_total{adapter="green",kind="generation"}' in metrics


def test_only_who_may_operate_changes_adapters(server: Server, adapters: Adapters, tiny_model: Path) -> None:
    body = {"lora_name": "mine", "lora_path": str(adapters.folders["green"])}
    assert change(server, "load", USER, **body).status_code == 403
    assert change(server, "unload", USER, lora_name="red").status_code == 403
    broken = change(server, "load", lora_name="mine", lora_path=str(tiny_model)).json()["error"]
    assert "no adapter_config.json" in broken["message"]
    relative = change(server, "load", lora_name="mine", lora_path="green").json()["error"]
    assert relative["param"] == "lora_path"
    assert "mine" not in models(server)


def test_an_adapter_that_cannot_be_loaded_ends_the_start(tiny_model: Path, adapters: Adapters) -> None:
    flags = ("--model", str(tiny_model), "--lora", f"red={adapters.folders['red']}", "--max-lora-rank", "2")
    ended = run("-m", "app.cli", "serve", "--port", "0", *flags)
    assert ended.code == 2
    assert "lora: red: " in ended.log
    assert "max_lora_rank is 2" in ended.log


def test_an_adapter_is_not_called_as_the_model(tiny_model: Path, adapters: Adapters) -> None:
    flags = ("--model", str(tiny_model), "--served-model-name", "red", "--lora", f"red={adapters.folders['red']}")
    ended = run("-m", "app.cli", "serve", "--port", "0", *flags)
    assert ended.code == 2
    assert "lora: the served model has the name red" in ended.log
