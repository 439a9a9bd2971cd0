"""Folders with a vocabulary of SentencePiece or tiktoken get a tokenizer.json that gives those libraries' tokens.

`own_tokenizers.json` was made by sentencepiece 0.2 (vocabularies trained on a small text) and tiktoken (the merges of
llama_cpp.json as ranks, with the patterns of the classes' own code).
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from transformers import MarianTokenizer

from app.checkpoint.convert import convert
from app.checkpoint.folder import ModelFolder
from app.checkpoint.own_tokenizer import OwnTokenizer, own_tokenizer
from app.text.tokenizer import Tokenizer
from tests.checkpoint.conftest import find
from tests.checkpoint.vocabularies import LLAMA_CPP

OWN: dict[str, Any] = json.loads(Path(__file__).with_name("own_tokenizers.json").read_text(encoding="utf-8"))
TEXTS: list[str] = LLAMA_CPP["texts"]
RANKS = "".join(f"{token} {rank}\n" for rank, token in enumerate(OWN["ranks"]))
PIECES = base64.b64decode(OWN["sentence_pieces"][0]["model"])


def write(folder: Path, name: str, content: bytes | str, **config: object) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def own(folder: Path) -> OwnTokenizer:
    tokenizer = own_tokenizer(ModelFolder(folder))
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("case", OWN["sentence_pieces"], ids=["with a space in front", "without"])
def test_pieces(case: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.model", base64.b64decode(case["model"]), add_eos_token=True)
    fast = own(tmp_path).fast
    for text, ids in zip(TEXTS, case["ids"], strict=True):
        assert fast.encode(text).ids == [1, *ids, 2], text


def trained_pieces(texts: list[str] = TEXTS, **ids: Any) -> bytes:
    """A vocabulary of the other kind, whose pieces are chosen by their probabilities."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=written, vocab_size=200, hard_vocab_limit=False,
        model_type="unigram", minloglevel=2, **ids,
    )  # fmt: skip
    return written.getvalue()


@pytest.mark.parametrize(
    ("kind", "file", "ids", "shift", "around"),
    [
        ("t5", "spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, 0, ([], [1])),
        ("xlm-roberta", "sentencepiece.bpe.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2}, 1, ([0], [2])),
    ],
)
def test_probable_pieces(
    kind: str, file: str, ids: dict[str, int], shift: int, around: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    content = trained_pieces(**ids)
    (given := tmp_path / "given").mkdir()
    (write(given, file, content) / "config.json").write_text(json.dumps({"model_type": kind}))
    convert(given, tmp_path / "converted")
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "converted" / "tokenizer.json"))
    oracle = sentencepiece.SentencePieceProcessor(model_proto=content)
    begin, end = around

    def told(found: list[int]) -> tuple[str, Any]:
        """The text of pieces, and how probable they are: several ways to cut a text may be equally so."""
        pieces = "".join(map(oracle.id_to_piece, found)).replace("<unk>", "⁇")
        return pieces, pytest.approx(sum(map(oracle.get_score, found)), abs=1e-3)

    for text in TEXTS:
        if "<" in text or text.strip() != text:  # names of special tokens, which SentencePiece was not told
            continue
        found = fast.encode(text).ids
        assert (found[: len(begin)], found[len(found) - len(end) :]) == (begin, end)
        unknown = fast.token_to_id("<unk>")
        inner = [
            oracle.unk_id() if id_ == unknown else id_ - shift for id_ in found[len(begin) : len(found) - len(end)]
        ]
        assert told(inner) == told(oracle.encode(text)), text


@pytest.mark.parametrize("kind", OWN["tiktoken"])
def test_ranks(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "some.tiktoken", RANKS, tokenizer_class=kind)
    fast = own(tmp_path).fast
    for text, ids in zip(TEXTS, OWN["tiktoken"][kind], strict=True):
        if "<|im_end|>" not in text:  # a token of Qwen's, which tiktoken was not told
            assert fast.encode(text).ids == ids, text


def test_a_folder_is_completed_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = len(OWN["ranks"])
    folder = write(
        tmp_path / "in",
        "tiktoken.model",
        RANKS,
        tokenizer_class="TikTokenTokenizer",
        eos_token="<|end|>",
        added_tokens_decoder=declared((first + 1, "[BOS]"), (first + 3, "<|end|>")),
    )
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    found = Path(find(folder, XDG_CACHE_HOME=str(tmp_path)))
    assert found.parent.name == "models"
    assert (found / "model.safetensors").read_text() == "weights"
    tokenizer = Tokenizer(found)
    assert tokenizer.eos_token_ids == {first + 3}
    assert tokenizer.encode("[BOS]<|end|>") == [first + 1, first + 3]
    made = (found / "tokenizer.json").stat().st_mtime_ns
    assert Path(find(folder, XDG_CACHE_HOME=str(tmp_path))) == found
    assert (found / "tokenizer.json").stat().st_mtime_ns == made
    (folder / "config.json").write_text('{"model_type": "other"}')
    assert Path(find(folder, XDG_CACHE_HOME=str(tmp_path))) != found


def test_pieces_name_their_special_tokens_where_nothing_else_does(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.model", PIECES)
    (tmp_path / "tokenizer_config.json").unlink()
    config = own(tmp_path).config
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def declared(*tokens: tuple[int, str]) -> dict[str, Any]:
    return {str(id_): {"content": text, "special": True} for id_, text in tokens}


def test_declared_tokens_take_the_places_of_pieces(tmp_path: Path) -> None:
    """As InternLM2's chat models have it."""
    write(tmp_path, "tokenizer.model", PIECES)
    last = own(tmp_path).fast.get_vocab_size() - 1
    tokens = declared((0, "<unk>"), (2, "</s>"), (last, "<|im_start|>"), (last + 1, "<|im_end|>"))
    write(tmp_path, "tokenizer.model", PIECES, added_tokens_decoder=tokens)
    fast = own(tmp_path).fast
    assert fast.encode("<|im_start|><|im_end|></s>").ids == [1, last, last + 1, 2]


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.model", PIECES), ("some.tiktoken", RANKS)], ids=["pieces", "ranks"]
)
def test_a_declared_token_with_another_id_is_refused(name: str, content: bytes | str, tmp_path: Path) -> None:
    tokens = declared((1000, "a"), (1001, "<|im_end|>"))
    write(tmp_path, name, content, tokenizer_class="QWenTokenizer", added_tokens_decoder=tokens)
    with pytest.raises(ValueError, match=r"declares '(a|<\|im_end\|>)' as token 100\d, and the vocabulary has it as"):
        own(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("qwen.tiktoken", RANKS, "tokenizer class None cuts a text for qwen.tiktoken"),
        ("tokenizer.model", b"", "has no pieces"),
        ("tokenizer.model", "version https://git-lfs.github.com/spec/v1\n", "no readable file of SentencePiece"),
        ("tokenizer.model", PIECES[:-3], "no readable file of SentencePiece"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes | str, words: str, tmp_path: Path) -> None:
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=words):
        own(tmp_path)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # which it never uses
def test_marians_two_vocabularies(tmp_path: Path) -> None:
    """Texts become the ids that transformers gives them, and ids its texts, though a piece of source.spm has no id."""
    (folder := tmp_path / "given").mkdir()
    lines = [line for text in TEXTS for line in text.splitlines() if "<" not in line and line]
    for name, words in (("source", lines), ("target", [line.upper() for line in lines])):
        (folder / f"{name}.spm").write_bytes(trained_pieces(words, unk_id=0, bos_id=1, eos_id=2, pad_id=-1))
    names = [
        oracle.id_to_piece(id_)
        for oracle in (
            sentencepiece.SentencePieceProcessor(str(folder / f"{name}.spm")) for name in ("source", "target")
        )
        for id_ in range(3, oracle.get_piece_size())
    ]
    lacking = sentencepiece.SentencePieceProcessor(str(folder / "source.spm")).encode(lines[0], out_type=str)[1]
    pieces = ["</s>", "<unk>", ">>fra<<", *(name for name in dict.fromkeys(names) if name != lacking), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: id_ for id_, piece in enumerate(pieces)}))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian", "eos_token_id": 0}))
    convert(folder, tmp_path / "converted")
    ours, theirs = Tokenizer(tmp_path / "converted"), MarianTokenizer.from_pretrained(folder)
    num_unknown = 0
    for line in [*lines, *(f">>fra<< {line}" for line in lines), "a  b\t c </s> d", "", "ABC ☃☃ x ☃", "ÀÉ"]:
        expected = theirs(line)["input_ids"]
        assert ours.encode(line) == expected, line
        num_unknown += 1 in expected
        assert ours.decode(expected).strip() == theirs.decode(expected, skip_special_tokens=True)
    assert num_unknown > 4
    written = [id_ for id_, piece in enumerate(pieces) if piece.isupper()]
    assert ours.decode(written) == theirs.decode(written, skip_special_tokens=True)
    (folder / "target_vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="separate_vocabs"):
        convert(folder, tmp_path / "other")
