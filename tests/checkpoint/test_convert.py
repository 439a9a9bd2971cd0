"""Converted GGUF files equal what transformers reads from them, even after kills and with several converters."""

import json
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest
import regex
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.checkpoint.convert import convert
from app.checkpoint.source import find_model
from app.text.tokenizer import Tokenizer
from tests.checkpoint.conftest import find, start_find, write_gguf
from tests.patience import PATIENCE

TEXTS = [
    "the thing in the inn",
    "Numbers: 2024, 3.14 and ²½ Ⅷ.",
    "1. x\n\n2. the\n\n\n   33    in",
    "tabs\t\tand   spaces   \n",
    "emoji 👩‍👩‍👧 combining é Ünïcödé 日本語 עברית",
    "it's we'll 'tis",
    "",
]
# How llama.cpp splits text for `tokenizer.ggml.pre` = "smollm": each digit apart, then GPT-2's pattern.
DIGIT = regex.compile(r"(\p{N})")
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def expected_ids(folder: Path, text: str) -> list[int]:
    """Token ids by llama.cpp's splitting; only the merging of each piece is the library's."""
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    spelling = json.loads(fast.pre_tokenizer.__getstate__())["pretokenizers"][-1]
    assert spelling["type"] == "ByteLevel"
    pieces = [piece for part in DIGIT.split(text) for piece in GPT2.findall(part)]
    alphabet = byte_alphabet()
    return [token.id for piece in pieces for token in fast.model.tokenize("".join(alphabet[b] for b in piece.encode()))]


def byte_alphabet() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


@pytest.fixture(scope="module")
def converted(odd_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes agree on, after a third one's conversion was killed half way."""
    cache = tmp_path_factory.mktemp("cache")
    models = cache / "paceline" / "models"
    with start_find(odd_gguf, XDG_CACHE_HOME=str(cache)) as killed:
        assert killed.stderr is not None
        assert any("[2/3]" in line for line in killed.stderr)
        for converter in psutil.Process(killed.pid).children():
            converter.kill()
        assert "could not be converted: signal 9 ended it" in killed.communicate()[0]
    assert [path.name[:5] for path in models.iterdir() if path.is_dir()] == [".odd-"]

    both = [start_find(odd_gguf, XDG_CACHE_HOME=str(cache)) for _ in range(2)]
    (path, errors), (other_path, other_errors) = (process.communicate(timeout=PATIENCE) for process in both)
    assert path == other_path, errors + other_errors
    assert ["[3/3]" in told for told in (errors, other_errors)].count(True) == 1
    assert [folder for folder in models.iterdir() if folder.is_dir()] == [Path(path.strip())]
    return Path(path.strip())


def test_a_second_start_converts_nothing(odd_gguf: Path, converted: Path) -> None:
    cache = converted.parents[2]
    before = (converted / "model.safetensors").stat().st_mtime_ns
    assert find(odd_gguf, XDG_CACHE_HOME=str(cache)) == str(converted)
    assert (converted / "model.safetensors").stat().st_mtime_ns == before


def test_weights_are_those_that_transformers_reads(odd_gguf: Path, converted: Path) -> None:
    direct = AutoModelForCausalLM.from_pretrained(odd_gguf.parent, gguf_file=odd_gguf.name, dtype=torch.float32)
    weights = load_file(converted / "model.safetensors")
    expected = direct.state_dict()
    assert weights.keys() == expected.keys() - {"lm_head.weight"}  # tied
    for name, tensor in weights.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    again = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    ids = torch.tensor([[5, 50, 150, 260]])
    assert torch.allclose(again(ids).logits, direct.to(torch.bfloat16).to(torch.float32)(ids).logits, atol=1e-5)


def test_weights_are_those_of_the_file(odd_gguf: Path, converted: Path) -> None:
    weights = load_file(converted / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(odd_gguf).tensors}
    for stored, name in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        tensor = tensors[f"blk.1.{stored}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weights[f"model.layers.1.{name}.weight"], expected.to(torch.bfloat16))


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_and_text(converted: Path, text: str) -> None:
    tokenizer = Tokenizer(converted)
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert ids == expected_ids(converted, text)
    assert tokenizer.decode(ids) == text


def test_chat_prompts_and_their_special_tokens(odd_gguf: Path, converted: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the inn"}]
    direct: Any = AutoTokenizer.from_pretrained(odd_gguf.parent, gguf_file=odd_gguf.name)
    again: Any = AutoTokenizer.from_pretrained(converted)
    for options in ({"add_generation_prompt": True}, {}):
        rendered = again.apply_chat_template(messages, tokenize=False, **options)
        assert rendered == direct.apply_chat_template(messages, tokenize=False, **options)
        assert again(rendered)["input_ids"] == direct(rendered)["input_ids"]
    assert again("<|im_start|>x<|im_end|>")["input_ids"] == [1, again("x")["input_ids"][0], 2]
    assert Tokenizer(converted).special_ids == {0, 1, 2}
    assert (again.bos_token_id, again.eos_token_id) == (1, 0)


def test_generation_ends_with_the_text_and_with_the_turn(converted: Path) -> None:
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert Tokenizer(converted).eos_token_ids == {0, 2}


def test_what_is_not_quantized_keeps_its_dtype(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "half.gguf", gguf.GGMLQuantizationType.F16), tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_a_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.IQ4_NL):
        part = write_gguf(tmp_path / "part.gguf", kind, leave_out="blk.1.ffn_up.weight")
        with pytest.raises(ValueError, match=r"lacks 1 tensors of the model, blk\.1\.ffn_up\.weight"):
            convert(part, tmp_path / "part")
    assert not list(tmp_path.glob("part")) + list(tmp_path.glob(".part*"))


def test_a_broken_file_is_a_model_error_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes([99, 0, 0, 0]) + bytes(64))
    answer = find(broken, XDG_CACHE_HOME=str(tmp_path))
    assert answer.startswith(f"ModelError: {broken} could not be converted: ")
    assert "v99" in answer


def test_the_embedded_model_samples_as_its_makers_recommend() -> None:
    recommended = json.loads((find_model("embedded") / "generation_config.json").read_text())
    assert (recommended["temperature"], recommended["top_p"]) == (0.2, 0.9)


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_models_token_ids(text: str) -> None:
    folder = find_model("embedded")
    assert Tokenizer(folder).encode(text, add_special_tokens=True) == expected_ids(folder, text)
