"""`paceline quality` says what transformers' own distributions over the same windows say."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import PreTrainedModel

from app.cli import main
from app.kernels.cpu import integer
from app.quality import measure
from tests.models.families import VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import write_tokenizer

needs_kernel = pytest.mark.skipif(not integer.lanes(), reason="the processor has no AVX2")
WINDOW = 64
PIECES = ["on", "pace", "line", " ", "tokens", "\n", "queue", "; "]


def write_model(folder: Path, family: str = "Llama", **options: object) -> PreTrainedModel:
    """A tiny model whose tokens are bytes, with a context of one window."""
    model = write_checkpoint(family, {"max_position_embeddings": WINDOW, **options}, folder)
    write_tokenizer(folder)
    return model


def write_text(folder: Path) -> Path:
    """A text of several windows, the last of which is not full."""
    rng = random.Random(0)
    file = folder / "text.txt"
    file.write_text("".join(rng.choice(PIECES) for _ in range(80)))
    return file


def begin_texts_with(token: str, folder: Path) -> None:
    """Make a byte the BOS of a tokenizer."""
    file = str(folder / "tokenizer.json")
    fast = Tokenizer.from_file(file)
    fast.add_special_tokens([token])
    fast.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, ord(token))])
    fast.save(file)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """(windows, scored tokens, vocab) float64, of what precedes each token in a window's second half."""
    logits = torch.stack([model(window[None]).logits[0] for window in windows])
    return torch.log_softmax(logits[:, WINDOW // 2 : -1].double(), -1)


@pytest.mark.parametrize(("family", "impl", "bos"), [("Llama", "decoder", ""), ("Mistral", "generic", "~")])
def test_figures_are_those_of_transformers(
    family: str, impl: str, bos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = write_text(tmp_path), tmp_path / "out.json"
    own, other = tmp_path / "own", tmp_path / "other"
    model = write_model(own, family, sliding_window=20)
    reference = write_model(other, family, sliding_window=20, num_hidden_layers=2)
    if bos:
        for folder in (own, other):
            begin_texts_with(bos, folder)
    measure(str(own), str(other), text, out, dtype="float32", device="cpu", model_impl=impl)
    found = json.loads(out.read_text())

    ids = torch.tensor(list((bos + text.read_text()).encode()))
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    assert len(ids) % WINDOW
    if bos:
        windows[:, 0] = ord(bos)
    log_q, log_p = log_probabilities(model, windows), log_probabilities(reference, windows)
    targets = windows[:, WINDOW // 2 + 1 :, None]
    divergence = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).flatten()
    expected = {
        "perplexity": float((-log_q.gather(2, targets)).mean().exp()),
        "perplexity_of_reference": float((-log_p.gather(2, targets)).mean().exp()),
        "kl_divergence": float(divergence.mean()),
        "kl_divergence_p99": float(divergence.quantile(0.99)),
        "same_greedy_token": float((log_q.argmax(-1) == log_p.argmax(-1)).double().mean()),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (found["windows"], found["scored_tokens"]) == (len(windows), targets.numel())
    assert found["model"]["model_impl"] == impl
    assert f"{found['perplexity']:.4f}" in capsys.readouterr().out


@needs_kernel
def test_what_rounding_costs_is_found(tmp_path: Path) -> None:
    write_model(tmp_path, intermediate_size=128)
    text, out, costs = write_text(tmp_path), tmp_path / "out.json", []
    for quantization in ("none", "int8", "int4"):
        measure(str(tmp_path), str(tmp_path), text, out, dtype="float32", device="cpu", quantization=quantization)
        costs.append(json.loads(out.read_text())["kl_divergence"])
    assert costs[0] < 1e-9
    assert 10 * costs[0] < costs[1] < 0.01 < costs[2]


def test_without_a_reference_there_is_a_perplexity_alone(tmp_path: Path) -> None:
    write_model(tmp_path)
    out = tmp_path / "out.json"
    measure(str(tmp_path), None, write_text(tmp_path), out, dtype="float32", device="cpu")
    found = json.loads(out.read_text())
    assert found["perplexity"] > 1
    assert found["against"] is None
    assert "kl_divergence" not in found


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line that the command says before it ends."""
    monkeypatch.setattr(sys, "argv", ["paceline", "quality", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    line = re.fullmatch(r"paceline: (.+)\n", capsys.readouterr().err)
    assert line
    return line[1]


def test_what_cannot_be_measured_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, larger, marked, encoder = (tmp_path / name for name in ("own", "larger", "marked", "encoder"))
    write_model(own)
    write_model(larger, vocab_size=VOCAB_SIZE + 1)
    write_model(marked)
    begin_texts_with("~", marked)
    write_model(encoder)
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    text, short, binary = write_text(tmp_path), tmp_path / "short.txt", tmp_path / "binary"
    short.write_text("on" * 20)
    binary.write_bytes(b"\xff\xfe")
    for arguments, words in (
        ((own, "--text", tmp_path / "missing"), "--text: .*missing cannot be read: No such file"),
        ((own, "--text", binary), "--text: .*binary is not UTF-8"),
        ((own, "--text", short), "--text: 40 tokens are too few: a window has 64"),
        ((own, "--json", tmp_path / "no" / "out.json"), "--json: .*out.json cannot be written to: No such file"),
        ((tmp_path / "nobody", "--text", text), "no such model: .*nobody"),
        (
            (own, "--text", text, "--against", larger),
            "--against: the vocabularies differ: they have 199 and 200 tokens",
        ),
        ((own, "--text", text, "--against", marked), "--against: the vocabularies differ: the text becomes other"),
        ((encoder, "--text", text), "encoder is an encoder"),
    ):
        assert re.search(words, refusal(capsys, monkeypatch, *arguments))
