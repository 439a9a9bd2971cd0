"""Inputs of all lengths at once give what transformers gives for each alone."""

import json
import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from msgspec import structs
from safetensors.torch import save_file

from app.check_model import check
from app.checkpoint.folder import ModelFolder
from app.checkpoint.sentence_transformers import Dense, Modules, Pooling
from app.core.request import Extras
from app.core.sampling import SamplingParams
from app.core.step import BuiltWorker, NewRequest, SchedulerOutput
from app.errors import ModelError
from app.settings import load_settings
from app.worker.encoder_factory import build_encoder
from app.worker.predictive_runner import PredictiveRunner

TINY: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"type_vocab_size": 1},
    "XLMRoberta": {"type_vocab_size": 1},
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "MPNet": {},
    "Electra": {"embedding_size": 32},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 8, "bos_token_id": 2, "eos_token_id": 3,
                   "cls_token_id": 2, "sep_token_id": 3},
}  # fmt: skip


def write_encoder(folder: Path, family: str, kind: str, **options: Any) -> torch.nn.Module:
    """A random encoder, saved to a folder; transformers' own model in float32."""
    config = getattr(transformers, f"{family}Config")(**{**TINY, **FAMILIES[family], **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * (0.15 if parameter.dim() > 1 else 0.3)
    model.save_pretrained(folder)
    return model.float().eval()  # type: ignore[no-any-return]


def make_requests(has_types: bool) -> list[NewRequest]:
    rng, requests = random.Random(1), []
    for row in range(24):
        token_ids = [rng.randrange(4, 99) for _ in range(rng.choice([1, 2, 3, 7, 8, 9, 30, 31, 60]))]
        extras = Extras([int(has_types and at > len(token_ids) // 2) for at in range(len(token_ids))])
        requests.append(
            NewRequest(
                row=row,
                token_ids=token_ids,
                num_prompt_tokens=len(token_ids),
                block_ids=[],
                sampling=SamplingParams(max_tokens=0, seed=0),
                extras=extras,
            )
        )
    return requests


def encode(built: BuiltWorker, requests: list[NewRequest]) -> list[bytes]:
    """The vectors of inputs that are computed in one step."""
    rows = [request.row for request in requests]
    counts = [len(request.token_ids) for request in requests]
    result = built.worker.submit(SchedulerOutput(requests, [], rows, [str(row) for row in rows], counts)).result()
    return [result.vectors[index] for index in range(len(rows))]


@torch.inference_mode()
def alone(model: torch.nn.Module, request: NewRequest, has_types: bool) -> Any:
    types = {"token_type_ids": torch.tensor([request.extras.type_ids])} if has_types else {}
    return model(input_ids=torch.tensor([request.token_ids]), **types)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        *((family, ("mean",)) for family in FAMILIES),
        *(("Bert", (how,)) for how in ("cls", "lasttoken", "max", "weightedmean", "mean_sqrt_len_tokens")),
        ("Bert", ("max", "mean")),
    ],
)
def test_embeddings(family: str, pooling: tuple[Pooling, ...], tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, family, "Model")
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    assert config.max_len == (68 if family in ("Roberta", "XLMRoberta", "MPNet") else 70)
    config = replace(config, modules=Modules(pooling))
    built = build_encoder(load_settings(device="cpu"), tmp_path, config)
    has_types = family in ("Bert", "Electra")
    requests = make_requests(has_types)
    for request, vector in zip(requests, encode(built, requests), strict=True):
        hidden = alone(oracle, request, has_types).last_hidden_state[0]
        expected = np.concatenate([pooled(hidden)[how] for how in pooling])
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected, atol=1e-5, rtol=1e-5)


def pooled(hidden: torch.Tensor) -> dict[str, Any]:
    """By sentence-transformers' definitions, from the hidden states (tokens, hidden_size) of one input."""
    places = torch.arange(1, len(hidden) + 1)[:, None]
    return {
        "cls": hidden[0],
        "lasttoken": hidden[-1],
        "max": hidden.amax(0),
        "mean": hidden.mean(0),
        "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
        "weightedmean": (hidden * places).sum(0) / places.sum(),
    }


def test_a_prompt_that_does_not_count_is_left_out_of_the_pooling(tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, "Bert", "Model")
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    modes: tuple[Pooling, ...] = ("cls", "max", "mean", "lasttoken")
    built = build_encoder(load_settings(device="cpu"), tmp_path, replace(config, modules=Modules(modes)))
    requests = [request for request in make_requests(has_types=False) if len(request.token_ids) > 3]
    ignoring = [structs.replace(request, extras=Extras(request.extras.type_ids, num_ignored=3)) for request in requests]
    for request, vector in zip(requests, encode(built, ignoring), strict=True):
        left = pooled(alone(oracle, request, has_types=False).last_hidden_state[0, 3:])
        expected = np.concatenate([left[how] for how in modes])
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected, atol=1e-5, rtol=1e-5)


def test_linear_layers_behind_the_pooling(tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, "Bert", "Model")
    layer = torch.nn.Linear(32, 7)
    tensors = {f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}
    (tmp_path / "2_Dense").mkdir()
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    modules = Modules(dense=(Dense("2_Dense", 32, 7, has_bias=True, activation="Tanh"),))
    with pytest.raises(ModelError, match=r"2_Dense has no model\.safetensors"):
        build_encoder(load_settings(device="cpu"), tmp_path, replace(config, modules=modules))
    save_file(tensors, tmp_path / "2_Dense" / "model.safetensors")
    built = build_encoder(load_settings(device="cpu"), tmp_path, replace(config, modules=modules))
    requests = make_requests(has_types=False)
    for request, vector in zip(requests, encode(built, requests), strict=True):
        mean = alone(oracle, request, has_types=False).last_hidden_state[0].mean(0)
        expected = torch.tanh(layer.weight @ mean + layer.bias).detach().numpy()
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected, atol=1e-5, rtol=1e-5)
    wrong = Modules(dense=(Dense("2_Dense", 32, 8, has_bias=True, activation="Tanh"),))
    with pytest.raises(ModelError, match="2_Dense is not a usable linear layer"):
        build_encoder(load_settings(device="cpu"), tmp_path, replace(config, modules=wrong))


def test_an_encoder_that_does_not_run_is_refused_with_a_reason(tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", "Model")
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    with pytest.raises(ModelError, match="BertModel does not run as an encoder: RuntimeError: The expanded size of"):
        build_encoder(load_settings(device="cpu"), tmp_path, replace(config, max_len=100))  # it has 70 positions


def test_half_of_an_encoder_decoder_embeds_and_the_whole_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    half, whole = transformers.T5EncoderModel(deepcopy(config)).eval(), transformers.T5Model(config)
    for model, folder in ((half, tmp_path / "half"), (whole, tmp_path / "whole")):
        model.save_pretrained(folder)
        write_modules(folder, "mean")
    description = ModelFolder(tmp_path / "half").predictor
    assert description is not None
    built = build_encoder(load_settings(device="cpu"), tmp_path / "half", description)
    requests = make_requests(has_types=False)
    for request, vector in zip(requests, encode(built, requests), strict=True):
        mean = alone(half, request, has_types=False).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), mean, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="t5 is an encoder-decoder model, which is not supported"):
        build_encoder(load_settings(device="cpu"), tmp_path / "whole", description)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert"])
def test_classifiers(family: str, tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, family, "ForSequenceClassification", id2label={0: "no", 1: "yes", 2: "maybe"})
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    assert (config.task, config.labels, config.is_multi_label) == ("classify", ("no", "yes", "maybe"), False)
    built = build_encoder(load_settings(device="cpu"), tmp_path, config)
    requests = make_requests(family == "Bert")
    for request, logits in zip(requests, encode(built, requests), strict=True):
        expected = alone(oracle, request, family == "Bert").logits[0].numpy()
        np.testing.assert_allclose(np.frombuffer(logits, np.float32), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("Bert", "Model"), ("Roberta", "ForSequenceClassification")])
def test_check_model_compares_encoders(
    family: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoder(tmp_path, family, kind)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert check(str(tmp_path))
    assert "transformers: agrees" in capsys.readouterr().out
    original = PredictiveRunner.predict
    monkeypatch.setattr(  # the trial at the start has two inputs at most
        PredictiveRunner, "predict", lambda self, given: original(self, given)[:: -1 if len(given) > 2 else 1]
    )
    assert not check(str(tmp_path))
    assert "transformers: DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "kind", "pooling", "options"),
    [
        ("Gemma3Text", "Gemma3TextModel", "mean", {"use_bidirectional_attention": True, "sliding_window": 8}),
        ("Qwen3", "Qwen3ForCausalLM", "lasttoken", {"tie_word_embeddings": False}),
    ],
)
def test_decoders_whose_files_make_them_embedders(
    family: str, kind: str, pooling: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """As EmbeddingGemma and Qwen3-Embedding are."""
    config = getattr(transformers, f"{family}Config")(**TINY, num_key_value_heads=2, head_dim=8, **options)
    torch.manual_seed(0)
    oracle = getattr(transformers, kind)(config).eval()
    oracle.save_pretrained(tmp_path)
    write_modules(tmp_path, pooling)
    description = ModelFolder(tmp_path).predictor
    assert description is not None
    built = build_encoder(load_settings(device="cpu", dtype="float32"), tmp_path, description)
    requests = make_requests(has_types=False)
    body = oracle if kind.endswith("Model") else oracle.model
    for request, vector in zip(requests, encode(built, requests), strict=True):
        expected = pooled(alone(body, request, has_types=False).last_hidden_state[0])[pooling]
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected, atol=1e-5, rtol=1e-4)


def write_modules(folder: Path, pooling: str) -> None:
    """The files of sentence-transformers for a model and a pooling."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    types = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(types))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
