"""Requests with adapters say what transformers says with the adapter's products added to its weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from app.core.sampling import SamplingParams
from app.core.wire import GenerateCommand
from app.engine.core import EngineCore
from app.errors import ModelError
from tests.models.adapters import merged, write_adapter
from tests.models.families import DECODER, GENERIC, RECURRENT, write_checkpoint
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
SOME = (*ATTENTION, "down_proj", "qkv_proj", "dense", "in_proj")


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
    [*((f, "decoder") for f in ("Llama", "Qwen3", "Phi3", "Mixtral"))]
    + [(f, "generic") for f in ("GPTNeoX", "DeepseekV3", "Gemma3", "NemotronH", "KimiLinear")],
)
def test_adapters_and_the_base_in_one_batch_are_each_as_if_merged(family: str, impl: str, tmp_path: Path) -> None:
    base = write_checkpoint(family, (DECODER | GENERIC | RECURRENT)[family], tmp_path / "model")
    folders = {
        "everywhere": write_adapter(base, tmp_path / "everywhere", 1, rank=8),
        "some": write_adapter(
            base, tmp_path / "some", 2, ends=(*ATTENTION, "down_proj", "qkv_proj", "dense", "in_proj"), rank=3
        ),
    }
    settings = tiny_settings(model_impl=impl, lora={name: str(folder) for name, folder in folders.items()})
    models = {"": base} | {name: merged(base, folder) for name, folder in folders.items()}
    check_crowd(make_engine(tmp_path / "model", settings), models)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, write_checkpoint("Llama", DECODER["Llama"], folder)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"lora_alpha": 3, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 9}},
    ],
    ids=["root", "patterns"],
)
def test_scales_and_ranks_are_those_of_peft(
    config: dict[str, Any], llama: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, base = llama
    adapter = write_adapter(base, tmp_path, 3, **config)
    core = make_engine(folder, tiny_settings(lora={"own": str(adapter)}))
    sampling = SamplingParams(max_tokens=8, seed=0, temperature=0.0, logprobs=0, prompt_logprobs=0)
    prompt = list(range(20, 60))
    outputs, _ = run_crowd(core, {"one": (prompt, sampling)}, adapters={"one": "own"})
    check_logprobs(merged(base, adapter), prompt, outputs["one"])


def test_what_was_computed_with_an_adapter_is_no_other_requests(
    llama: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """Neither that of the base, nor of another adapter, nor of one that has the name and the slot later."""
    folder, base = llama
    adapters = [write_adapter(base, tmp_path / str(seed), seed) for seed in range(2)]
    core = make_engine(folder, tiny_settings(lora={"own": str(adapters[0])}))
    prompt, sampling = list(range(3, 53)), SamplingParams(max_tokens=20, seed=0, temperature=0.0)

    def ask(adapter: str, model: PreTrainedModel) -> int:
        outputs, _ = run_crowd(core, {"one": (prompt, sampling)}, adapters={"one": adapter})
        said = tokens_of(outputs["one"])
        assert said == greedy(model, prompt, said, 20)
        return outputs["one"][0].num_cached_tokens

    first = merged(base, adapters[0])
    assert [ask("", base), ask("own", first), ask("", base), ask("own", first)] == [0, 0, 48, 48]
    core.adapters.unload("own")
    core.load_adapter("own", str(adapters[1])).result()
    assert ask("own", merged(base, adapters[1])) == 0


def test_a_request_that_is_resumed_has_the_adapter_that_it_began_with(
    llama: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """Although another one has the name; see law 5."""
    folder, base = llama
    adapters = [write_adapter(base, tmp_path / str(seed), seed) for seed in range(2)]
    core = make_engine(folder, tiny_settings(lora={"own": str(adapters[1])}, max_loras=2))
    prompt, sampling = list(range(3, 53)), SamplingParams(max_tokens=20, seed=0, temperature=0.0)
    for adapter in adapters:
        name, own = adapter.name, {"adapter": "own", "adapter_folder": str(adapter)}
        core.add(GenerateCommand(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrived_at=0.0, **own))
    said: dict[str, list[int]] = {"0": [], "1": []}
    while core.admit_prepared() or core.has_work:
        for output in core.step().outputs:
            said[output.request_id] += output.token_ids
    for adapter in adapters:
        tokens = said[adapter.name]
        assert tokens == greedy(merged(base, adapter), prompt, tokens, 20)
    assert said["0"] != said["1"]
    assert core.adapters.folders == {"own": str(adapters[1])}


def test_on_quantized_weights_a_text_depends_on_its_request_alone(
    llama: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, base = llama
    lora = {name: str(write_adapter(base, tmp_path / name, seed)) for seed, name in enumerate(("one", "two"))}
    settings = tiny_settings(quantization="int8", lora=lora)
    prompt = list(range(3, 40))
    sampling = SamplingParams(max_tokens=30, seed=5, logprobs=0, prompt_logprobs=0)
    kinds = dict(enumerate(["", "one", "two"] * 3))
    core = make_engine(folder, settings)
    crowd, _ = run_crowd(
        core, {str(at): (prompt, sampling) for at in kinds}, adapters={str(at): kind for at, kind in kinds.items()}
    )
    texts = {}
    for at, kind in kinds.items():
        alone, _ = run_crowd(core, {"one": (prompt, sampling)}, adapters={"one": kind})
        texts[kind] = tokens_of(alone["one"])
        assert tokens_of(crowd[str(at)]) == texts[kind]
        entries = [
            [entry.logprobs[0] for output in news for entry in output.logprobs]
            for news in (alone["one"], crowd[str(at)])
        ]
        assert entries[0] == entries[1]
    assert len(set(map(tuple, texts.values()))) == 3


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, Tensor]


def renamed(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensors.pop(f"{LAYER}.lora_A.weight")})


@pytest.mark.parametrize(
    ("words", "change", "config"),
    [
        ("q_proj.lora_A.weight has shape .4, 63., not .4, 64.", lambda t: t.update(
            {f"{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"][:, 1:].contiguous()}), {}),
        ("q_proj.lora_A.weight has shape .4, 64., not .5, 64.", None, {"r": 5}),
        ("lora_A.weight has values that are no numbers", lambda t: t[f"{LAYER}.lora_A.weight"][0].fill_(torch.nan), {}),
        ("only lora_B of model.layers.0.self_attn.q_proj", lambda t: t.pop(f"{LAYER}.lora_A.weight"), {}),
        ("layers.9.self_attn.q_proj.lora_A.weight is for", renamed(f"{LAYER.replace('0', '9')}.lora_A.weight"), {}),
        ("lm_head.lora_A.weight is for lm_head", renamed("base_model.model.lm_head.lora_A.weight"), {}),
        ("lora_magnitude_vector.weight is DoRA", renamed(f"{LAYER}.lora_magnitude_vector.weight"), {}),
        ("q_proj.bias is a bias", renamed(f"{LAYER}.bias"), {}),
        ("lora_embedding_A is an adapter of embeddings", renamed("model.embed_tokens.lora_embedding_A"), {}),
        ("use_dora is not supported", None, {"use_dora": True}),
        ("modules_to_save is not supported", None, {"modules_to_save": ["lm_head"]}),
        ("bias all is not supported", None, {"bias": "all"}),
        ("init_lora_weights pissa is not supported", None, {"init_lora_weights": "pissa"}),
        ("peft_type IA3 is not supported", None, {"peft_type": "IA3"}),
        ("target_parameters is not supported", None, {"target_parameters": ["experts"]}),
        ("megatron_config is not supported", None, {"megatron_config": {"num_layers": 2}}),
        ("adapter_config.json: ValueError: nan is no alpha", None, {"lora_alpha": math.nan}),
        ("adapter_config.json: ValueError: inf is no alpha", None, {"alpha_pattern": {"q_proj": math.inf}}),
        ("lora_alpha makes B of model.layers.0.self_attn.q_proj too large", None, {"lora_alpha": 1e39}),
        ("has rank 64, and max_lora_rank is 16", None, {"r": 64}),
    ],
)  # fmt: skip
def test_what_does_not_fit_or_is_not_supported_is_refused_by_name(
    words: str,
    change: Callable[[Tensors], Any] | None,
    config: dict[str, Any],
    llama_with_room: tuple[EngineCore, PreTrainedModel],
    tmp_path: Path,
) -> None:
    core, base = llama_with_room
    folder = write_adapter(base, tmp_path, 0, ends=ATTENTION)
    if change:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ModelError, match=words):
        core.load_adapter("new", str(folder)).result()
    assert core.adapters.folders == {}


@pytest.fixture(scope="module")
def llama_with_room(llama: tuple[Path, PreTrainedModel]) -> tuple[EngineCore, PreTrainedModel]:
    return make_engine(llama[0], tiny_settings(lora_loading=True)), llama[1]


def test_experts_that_are_no_linear_layers_are_refused(tmp_path: Path) -> None:
    moe = write_checkpoint("Mixtral", DECODER["Mixtral"], tmp_path / "moe")
    adapter = write_adapter(moe, tmp_path / "adapter", 0, ends=ATTENTION)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.experts.gate_up_proj"
    tensors |= {f"{name}.lora_A.weight": torch.ones(4, 64), f"{name}.lora_B.weight": torch.ones(224, 4)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    for impl in ("decoder", "generic"):
        core = make_engine(tmp_path / "moe", tiny_settings(lora_loading=True, model_impl=impl))
        with pytest.raises(ModelError, match=r"experts\.gate_up_proj, which is no linear layer here"):
            core.load_adapter("new", str(adapter)).result()
