"""The files of sentence-transformers, as its versions write them: understood, or refused by name.

What is expected is what `SentenceTransformer.encode` and `CrossEncoder.predict` of version 6.2 do with these files.
"""

from typing import Any

import pytest

from app.checkpoint.encoders import EncoderConfig, parse_encoder_config
from app.checkpoint.sentence_transformers import Dense, Modules

BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
CLASSIFIER = BERT | {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
OLD = {kind: f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Normalize")}
NEW = {"Transformer": "sentence_transformers.base.modules.transformer.Transformer",
       "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
       "Dense": "sentence_transformers.base.modules.dense.Dense",
       "Normalize": "sentence_transformers.base.modules.normalize.Normalize"}  # fmt: skip
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
MEAN, ASKED = {"pooling_mode": "mean"}, "config_sentence_transformers.json"
DENSE = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": TANH}


def parse(files: dict[str, Any]) -> EncoderConfig | None:
    return parse_encoder_config(files.get)


def modules(kinds: str, types: dict[str, str] = OLD) -> list[dict[str, str]]:
    return [
        {"type": types[kind], "path": f"{index}_{kind}" if index else ""} for index, kind in enumerate(kinds.split())
    ]


def embedder(pooling: dict[str, Any], kinds: str = "Transformer Pooling", **files: Any) -> dict[str, Any]:
    return {"config.json": BERT, "modules.json": modules(kinds), "1_Pooling/config.json": pooling, **files}


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, ("max",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True}, ("cls",)),
        ({"embedding_dimension": 64, "pooling_mode": ["mean", "max"]}, ("mean", "max")),
    ],
)
def test_poolings(pooling: dict[str, Any], expected: tuple[str, ...]) -> None:
    config = parse(embedder(pooling))
    assert config is not None
    assert config.modules == Modules(expected, normalizes=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("types", [OLD, NEW])
def test_modules_of_old_and_new_versions(types: dict[str, str]) -> None:
    kinds = "Transformer Pooling Dense Dense Normalize"
    files = {"2_Dense/config.json": DENSE, "3_Dense/config.json": DENSE | {"in_features": 8, "bias": False,
             "activation_function": IDENTITY, "module_input_name": "sentence_embedding"}}  # fmt: skip
    config = parse(embedder(MEAN, kinds, **files) | {"modules.json": modules(kinds, types)})
    assert config is not None
    layers = Dense("2_Dense", 32, 8, True, "Tanh"), Dense("3_Dense", 8, 8, False, "Identity")
    assert config.modules == Modules(("mean",), dense=layers, normalizes=True)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (embedder({"embedding_dimension": 64}), "pooling by nothing"),
        (embedder({"pooling_mode": "attention"}), "pooling by attention"),
        (embedder({"pooling_mode_attention": True}), "pooling_mode_attention is not supported"),
        (embedder({"pooling_mode": "mean", "temperature": 2}), "temperature is not supported"),
        ({"config.json": BERT, "modules.json": modules("Transformer Pooling")}, "1_Pooling/config.json is missing"),
        ({"config.json": BERT, "modules.json": modules("Transformer")}, "Transformer is not supported"),
        (embedder(MEAN, "Transformer Pooling Normalize Dense"), "Normalize, then Dense"),
        (embedder({}) | {"modules.json": [{"type": "custom_st.Transformer", "path": ""}]}, r"custom_st\.Transformer"),
        (
            embedder({}) | {"modules.json": [{"type": OLD["Transformer"], "path": "0_Transformer"}]},
            "Transformer is not supported",
        ),
        (
            embedder(MEAN, "Transformer Pooling Dense",
                     **{"2_Dense/config.json": DENSE | {"use_residual": True}}),
            "use_residual True is not supported",
        ),
        (
            embedder(MEAN, "Transformer Pooling Dense",
                     **{"2_Dense/config.json": DENSE | {"activation_function": "os.system"}}),
            r"the activation os\.system is not supported",
        ),
        (
            embedder(MEAN, **{ASKED: {"model_type": "SparseEncoder"}}),
            "a SparseEncoder is not supported",
        ),
        (
            embedder(MEAN, **{ASKED: {"default_prompt_name": "query"}}),
            "there is no prompt query",
        ),
        (embedder(MEAN, **{ASKED: {"truncate_dim": 8}}), "truncate_dim"),
        ({"config.json": CLASSIFIER | {"sbert_ce_default_activation_function": TANH}}, r"activation \S+Tanh of a"),
        ({"config.json": CLASSIFIER | {"sentence_transformers": {"activation_fn": "my.Own"}}}, r"activation my\.Own"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(files: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(files)


def test_prompts_and_lengths() -> None:
    prompts = {"prompts": {"query": "query: ", "document": ""}}
    files = {
        ASKED: prompts | {"default_prompt_name": "query"},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
    }
    config = parse(embedder({"pooling_mode": "mean", "include_prompt": False}, **files))
    assert config is not None
    assert (config.prompt, config.modules.includes_prompt) == ("query: ", False)
    assert (config.max_len, config.lowercases) == (128, True)
    without = parse(embedder(MEAN, **{ASKED: prompts}))
    assert without is not None
    assert (without.prompt, without.max_len) == ("", 512)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({}, {}, "Sigmoid"),
        ({}, {"activation_fn": IDENTITY, "model_type": "CrossEncoder"}, "Identity"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {}, "Identity"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": "torch.nn.Sigmoid"}, "Sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}, "Identity"),
    ],
)
def test_activations_of_cross_encoders(config: dict[str, Any], asked: dict[str, Any], expected: str) -> None:
    files = {"config.json": CLASSIFIER | config, ASKED: asked}
    for more in ({}, {"modules.json": modules("Transformer", NEW)}):
        parsed = parse(files | more)
        assert parsed is not None
        assert (parsed.task, parsed.activation) == ("classify", expected)
