"""Building workers: which parts are chosen, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from app.checkpoint.source import find_model
from app.core.sampling import SamplingParams
from app.core.step import NewRequest, SchedulerOutput
from app.errors import ModelError, StartupError
from app.settings import Settings, load_settings
from app.worker.execution import StepMemory
from app.worker.factory import build_worker
from app.worker.resolve import _gpu_memory_left
from tests.models.families import _TINY

GIB = 2**30


def write_config(folder: Path, **options: object) -> Path:
    config = {**_TINY, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32", **options}
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({str(token): token for token in range(100)})).save(str(folder / "tokenizer.json"))
    return folder


def dummy_settings(**options: object) -> Settings:
    return load_settings(load_format="dummy", device="cpu", num_kv_blocks=40, max_model_len=64, **options)


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    with pytest.raises(ModelError, match="safetensors"):
        find_model(str(folder))
    assert find_model(str(folder), needs_weights=False) == folder


@pytest.mark.parametrize("kind", [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")])
def test_dummy_weights_compute_numbers(kind: tuple[str, str], tmp_path: Path) -> None:
    folder = write_config(tmp_path, model_type=kind[0], architectures=[kind[1]])
    worker = build_worker(dummy_settings(), folder).worker
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    request = NewRequest(row=0, token_ids=[5, 6, 7], num_prompt_tokens=3, block_ids=[[0]], sampling=sampling)
    result = worker.submit(SchedulerOutput([request], [], [0], ["a"], [3])).result()
    assert 0 <= result.token_ids[0][0] < _TINY["vocab_size"]


def test_dummy_weights_of_a_quantized_checkpoint_are_for_the_decoder(tmp_path: Path) -> None:
    options = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    folder = write_config(tmp_path, model_type="gpt2", architectures=["GPT2LMHeadModel"], **options)
    with pytest.raises(ModelError, match="load_format"):
        build_worker(dummy_settings(), folder)


@pytest.mark.parametrize(("backend", "dtype"), [("triton", "float32"), ("cpu", "float16")])
def test_a_backend_that_does_not_run_here_is_refused(
    backend: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(StartupError, match=f"attention_backend: {backend}"):
        build_worker(dummy_settings(attention_backend=backend, dtype=dtype), write_config(tmp_path))


@pytest.mark.parametrize(
    ("kv_dtype", "backend", "told"),
    [("fp8", "auto", "kv_dtype: .* only in float32 or int8"), ("int8", "torch", "attention_backend: torch .*int8")],
)
def test_a_type_of_k_and_v_that_no_attention_reads_here_is_refused(
    kv_dtype: str, backend: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match=told):
        build_worker(dummy_settings(attention_backend=backend, kv_dtype=kv_dtype), write_config(tmp_path))


def test_the_same_memory_holds_more_of_k_and_v_in_8_bits(tmp_path: Path) -> None:
    folder = write_config(tmp_path, head_dim=64)
    settings = load_settings(
        load_format="dummy", device="cpu", dtype="bfloat16", kv_cache_memory="1MiB", max_num_seqs=256, max_model_len=64
    )
    blocks = [
        build_worker(settings.model_copy(update={"kv_dtype": kind}), folder).limits.groups[0].num_blocks
        for kind in ("auto", "int8")
    ]
    assert blocks[1] / blocks[0] == pytest.approx(128 / 68, rel=0.03)


@pytest.mark.parametrize(
    ("draft", "options", "told"),
    [
        (None, {"speculate": "draft"}, "speculate: draft needs a draft_model"),
        ({}, {"speculate": "ngram"}, "draft_model: with speculate ngram it has no use"),
        ({"max_position_embeddings": 40}, {}, "draft_model: it was made for 40 tokens, and max_model_len is 64"),
        ({"vocab_size": 50}, {}, "draft_model: its vocabulary has 50 tokens, the model's 199"),
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 20},
            {},
            "sliding windows",
        ),
    ],
)
def test_draft_models_that_do_not_fit_are_refused(
    draft: dict[str, object] | None, options: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.factory.find_model", Path)  # which would ask for weights
    for name in ("model", "draft"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, **(draft or {}) if name == "draft" else {})
    if draft is not None:
        options = options | {"draft_model": str(tmp_path / "draft")}
    with pytest.raises(StartupError, match=told):
        build_worker(dummy_settings(**options), tmp_path / "model")


def test_memory_of_a_gpu_is_what_weights_and_the_largest_step_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 60 * GIB
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (free, 80 * GIB))
    device = torch.device("cuda")
    settings = load_settings(gpu_memory_utilization=0.5)
    assert _gpu_memory_left(settings, device, free, StepMemory(5 * GIB, 1 * GIB)) == (40 - 20 - 5 - 1) * GIB
    with pytest.raises(StartupError, match="gpu_memory_utilization: nothing is left"):
        _gpu_memory_left(settings, device, free, StepMemory(19 * GIB, 1 * GIB))
