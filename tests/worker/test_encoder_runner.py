"""Inputs of all lengths at once give what transformers gives for each alone."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from app.check_model import check
from app.checkpoint.encoders import EncoderConfig
from app.checkpoint.folder import ModelFolder
from app.core.request import Extras
from app.core.sampling import SamplingParams
from app.core.step import BuiltWorker, NewRequest, SchedulerOutput
from app.errors import ModelError
from app.settings import load_settings
from app.worker.encoder_factory import build_encoder
from app.worker.encoder_runner import EncoderRunner

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
    [*((family, "mean") for family in FAMILIES), *(("Bert", how) for how in ("cls", "last", "max"))],
)
def test_embeddings(family: str, pooling: Any, tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, family, "Model")
    config = ModelFolder(tmp_path).encoder
    assert config is not None
    assert config.max_len == (68 if family in ("Roberta", "XLMRoberta", "MPNet") else 70)
    built = build_encoder(load_settings(device="cpu"), tmp_path, EncoderConfig("embed", config.max_len, pooling))
    has_types = family in ("Bert", "Electra")
    requests = make_requests(has_types)
    for request, vector in zip(requests, encode(built, requests), strict=True):
        hidden = alone(oracle, request, has_types).last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[pooling]
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert"])
def test_classifiers(family: str, tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, family, "ForSequenceClassification", id2label={0: "no", 1: "yes", 2: "maybe"})
    config = ModelFolder(tmp_path).encoder
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
    original = EncoderRunner.encode
    monkeypatch.setattr(EncoderRunner, "encode", lambda self, requests: original(self, requests)[::-1])
    assert not check(str(tmp_path))
    assert "transformers: DIFFERS" in capsys.readouterr().out


def test_pooling_is_read_from_the_models_files(tmp_path: Path) -> None:
    def config(**pooling: bool) -> EncoderConfig | None:
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return ModelFolder(tmp_path).encoder

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert ModelFolder(tmp_path).encoder == EncoderConfig("embed", 512)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert config(pooling_mode_cls_token=True) == EncoderConfig("embed", 128, "cls", normalizes=False)
    assert config(pooling_mode_mean_tokens=True) == EncoderConfig("embed", 128, "mean", normalizes=False)
    for wrong in ({"pooling_mode_weightedmean_tokens": True},
                  {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}):  # fmt: skip
        with pytest.raises(ModelError, match="not supported"):
            config(**wrong)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "modules.json").unlink()
    assert ModelFolder(tmp_path).encoder is None
