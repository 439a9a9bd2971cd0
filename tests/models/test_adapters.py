"""Requests with adapters say what transformers says with the adapter's products added to its weights."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from app.core.sampling import SamplingParams
from app.engine.core import EngineCore
from tests.models.adapters import merged, write_adapter
from tests.models.families import DECODER, GENERIC, write_checkpoint
from tests.models.test_oracle import (
    check_logprobs,
    greedy,
    make_engine,
    make_requests,
    run_crowd,
    tiny_settings,
    tokens_of,
)

ATTENTION = ("q_proj", "v_proj")


def check_crowd(core: EngineCore, models: dict[str, PreTrainedModel]) -> None:
    """Requests of the base and of each adapter, side by side; half of them begin alike."""
    requests = make_requests(15, temperature=0.0)
    names = list(models)
    adapters = {name: names[index // 2 % len(names)] for index, name in enumerate(requests)}
    for name in list(requests)[1::3]:
        prompt, sampling = requests[name]
        wants = SamplingParams(max_tokens=sampling.max_tokens, seed=0, temperature=0.0, logprobs=1, prompt_logprobs=1)
        requests[name] = prompt, wants
    outputs, preemptions = run_crowd(core, requests, adapters=adapters)
    assert preemptions > 0
    for name, (prompt, sampling) in requests.items():
        said, model = tokens_of(outputs[name]), models[adapters[name]]
        assert said == greedy(model, prompt, said, sampling.max_tokens), (name, adapters[name])
        if sampling.logprobs is not None:
            check_logprobs(model, prompt, outputs[name])


@pytest.mark.parametrize(
    ("family", "impl"),
    [*((f, "decoder") for f in ("Llama", "Qwen2", "Qwen3", "Phi3")), ("Llama", "generic"), ("Gemma3", "generic")]
    + [(f, "generic") for f in ("GPTNeoX", "Cohere", "DeepseekV3")],
)
def test_adapters_and_the_base_in_one_batch_are_each_as_if_merged(family: str, impl: str, tmp_path: Path) -> None:
    base = write_checkpoint(family, (DECODER | GENERIC)[family], tmp_path / "model")
    folders = {
        "everywhere": write_adapter(base, tmp_path / "everywhere", 1, rank=8),
        "some": write_adapter(base, tmp_path / "some", 2, ends=(*ATTENTION, "down_proj", "qkv_proj", "dense"), rank=3),
    }
    settings = tiny_settings(model_impl=impl, lora={name: str(folder) for name, folder in folders.items()})
    models = {"": base} | {name: merged(base, folder) for name, folder in folders.items()}
    check_crowd(make_engine(tmp_path / "model", settings), models)
