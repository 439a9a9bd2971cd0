"""Decoders that embed, classify and judge, and classifiers of tokens: each input in a crowd as transformers alone."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from app.checkpoint.encoders import EncoderConfig
from app.checkpoint.folder import ModelFolder
from app.core.step import NewRequest
from app.errors import ModelError
from app.settings import load_settings
from app.worker.encoder_factory import build_encoder
from tests.worker.test_encoder_runner import TINY, alone, encode, make_requests, write_encoder

DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {"pad_token_id": None},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 70},
}


def write_decoder(folder: Path, family: str, kind: str, **options: Any) -> torch.nn.Module:
    """A random decoder, saved to a folder; transformers' own model in float32, with its plainest attention."""
    config = getattr(transformers, f"{family}Config")(
        **TINY | {"num_key_value_heads": 2} | DECODERS[family] | options, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(config).float()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * (0.15 if parameter.dim() > 1 else 0.3)
    model.save_pretrained(folder)
    return model.eval()  # type: ignore[no-any-return]


def compare(folder: Path, expected: Any, task: Any = "auto") -> EncoderConfig:
    """Assert that what a folder's model answers to a crowd is what `expected` says of each input."""
    config = ModelFolder(folder, task).predictor
    assert config is not None
    built = build_encoder(load_settings(device="cpu", dtype="float32", task=task), folder, config)
    requests = make_requests(has_types=False)
    for request, vector in zip(requests, encode(built, requests), strict=True):
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected(request), atol=1e-5, rtol=1e-4)
    return config


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_classify_by_their_last_token(family: str, tmp_path: Path) -> None:
    labels = 1 if family == "Llama" else 3
    oracle = write_decoder(tmp_path, family, "ForSequenceClassification", num_labels=labels)

    def logits(request: NewRequest) -> Any:
        return alone(oracle, request, has_types=False).logits[0]

    config = compare(tmp_path, logits)
    assert config.tasks == (("classify", "score") if labels == 1 else ("classify",))


def test_the_last_token_is_the_last_one_that_is_no_padding(tmp_path: Path) -> None:
    """Checkpoints may name the token that ends texts as padding: transformers then classifies by what is before."""
    oracle = write_decoder(tmp_path, "Qwen3", "ForSequenceClassification", pad_token_id=7)
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    built = build_encoder(load_settings(device="cpu", dtype="float32"), tmp_path, config)
    requests = [request for request in make_requests(has_types=False) if len(request.token_ids) > 2]
    for request in requests:
        request.token_ids[-1] = 7
    for request, vector in zip(requests, encode(built, requests), strict=True):
        expected = alone(oracle, request, has_types=False).logits[0]
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_without_files_that_say_more_a_decoder_embeds_by_its_last_token(family: str, tmp_path: Path) -> None:
    oracle = write_decoder(tmp_path, family, "Model")
    compare(tmp_path, lambda request: alone(oracle, request, has_types=False).last_hidden_state[0, -1])


def test_what_generates_or_fills_masks_embeds_if_it_is_asked_for(tmp_path: Path) -> None:
    for folder, oracle, place in (
        (tmp_path / "decoder", write_decoder(tmp_path / "decoder", "Qwen3", "ForCausalLM").model, [-1]),
        (tmp_path / "encoder", write_encoder(tmp_path / "encoder", "Bert", "ForMaskedLM").bert, slice(None)),
    ):

        def vector(request: NewRequest, oracle: Any = oracle, place: Any = place) -> Any:
            return alone(oracle, request, has_types=False).last_hidden_state[0, place].mean(0)

        compare(folder, vector, "embed")
    assert ModelFolder(tmp_path / "decoder").predictor is None
    with pytest.raises(ModelError, match="BertForMaskedLM is neither a generator nor an encoder"):
        _ = ModelFolder(tmp_path / "encoder").predictor


def test_a_decoder_that_is_not_causal_sees_all(tmp_path: Path) -> None:
    """As those of GTE-Qwen2 say."""
    oracle = write_decoder(tmp_path, "Qwen3", "Model", is_causal=False)
    first = oracle(torch.tensor([[1, 2, 3]])).last_hidden_state[0, 0], oracle(torch.tensor([[1, 2, 4]]))[0][0, 0]
    assert not torch.allclose(*first)
    compare(tmp_path, lambda request: alone(oracle, request, has_types=False).last_hidden_state[0].mean(0))


def write_words(folder: Path) -> None:
    """A tokenizer that knows two words."""
    fast = Tokenizer(models.WordLevel({"no": 5, "yes": 9, "?": 0}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
def test_a_judge_gives_the_logits_of_its_two_answers(family: str, tmp_path: Path) -> None:
    oracle = write_decoder(tmp_path, family, "ForCausalLM", tie_word_embeddings=family == "Gemma2")
    write_words(tmp_path)

    def answers(ids: list[int]) -> Any:
        return lambda request: alone(oracle, request, has_types=False).logits[0, -1, ids]

    assert compare(tmp_path, answers([9, 5]), "score").tasks == ("score",)
    types = {"": "base.modules.transformer.Transformer", "1_LogitScore": "cross_encoder.modules.logit_score.LogitScore"}
    files = {
        "modules.json": [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in types.items()],
        "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
        "1_LogitScore/config.json": {"true_token_id": 3, "false_token_id": 4},
    }
    (tmp_path / "1_LogitScore").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    compare(tmp_path, answers([3, 4]))


def test_judges_without_answers_are_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path, "Qwen3", "ForCausalLM")
    config = ModelFolder(tmp_path, "score").predictor
    assert config is not None
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    fast = Tokenizer(models.BPE({"y": 1, "e": 2, "s": 3, "n": 4, "o": 5}, []))
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="yes and no are not one token each"):
        build_encoder(load_settings(device="cpu", task="score"), tmp_path, config)
    write_encoder(tmp_path / "encoder", "Bert", "Model")
    with pytest.raises(ModelError, match="score is for models that generate, and BertModel is none"):
        _ = ModelFolder(tmp_path / "encoder", "score").predictor


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Qwen3"])
def test_logits_of_tokens(family: str, tmp_path: Path) -> None:
    write = write_decoder if family == "Qwen3" else write_encoder
    oracle = write(tmp_path, family, "ForTokenClassification", num_labels=5)
    config = compare(tmp_path, lambda request: alone(oracle, request, has_types=False).logits[0].flatten())
    assert (config.tasks, config.labels[-1]) == (("token_classify",), "LABEL_4")


WIDE: dict[str, dict[str, Any]] = {
    "EuroBert": {"num_key_value_heads": 2},
    "Esm": {},
    "FNet": {},
    "Gte": {},
    "JinaEmbeddingsV3": {},
    "MobileBert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "NomicBert": {},
    "RoFormer": {"embedding_size": 32},
}


@pytest.mark.parametrize("family", WIDE)
def test_whatever_is_tried_with_success_is_an_encoder(family: str, tmp_path: Path) -> None:
    """Padding changes what FNet and MobileBERT compute, and so their inputs are only put together by equal sizes."""
    config = getattr(transformers, f"{family}Config")(**TINY | WIDE[family])
    torch.manual_seed(0)
    oracle = getattr(transformers, f"{family}Model")(config).float().eval()
    oracle.save_pretrained(tmp_path)
    compare(tmp_path, lambda request: alone(oracle, request, has_types=False).last_hidden_state[0].mean(0))


def test_what_depends_on_its_neighbours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoder(tmp_path, "Bert", "Model")
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    forward = transformers.BertModel.forward

    def mix(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.last_hidden_state += len(output.last_hidden_state)
        return output

    mix.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(transformers.BertModel, "forward", mix)
    with pytest.raises(ModelError, match="BertModel gives an input another result beside another one"):
        build_encoder(load_settings(device="cpu"), tmp_path, config)
