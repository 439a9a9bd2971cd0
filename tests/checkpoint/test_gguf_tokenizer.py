"""Vocabularies of GGUF files give llama.cpp's tokens, and its loader's ends of a text; what is not known is named."""

from pathlib import Path
from typing import Any

import pytest

from app.checkpoint.gguf.file import GgufFile
from app.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS
from app.checkpoint.gguf.tokenizer import GgufTokenizer
from tests.checkpoint.vocabularies import LLAMA_CPP, SPECIAL, write_vocabulary

TEXTS: list[str] = LLAMA_CPP["texts"]


def read(path: Path, kind: str, **keys: Any) -> GgufTokenizer:
    return GgufTokenizer(GgufFile(write_vocabulary(path / "vocabulary.gguf", kind, **keys)))


@pytest.mark.parametrize("kind", LLAMA_CPP["byte_pairs"], ids=lambda kind: kind["names"][0])
def test_texts_are_cut_as_the_name_of_the_pre_tokenizer_says(kind: dict[str, Any], tmp_path: Path) -> None:
    first, *others = kind["names"]
    fast = read(tmp_path, "gpt2", pre=first, bos_token_id=0, eos_token_id=1).fast
    for text, ids in zip(TEXTS, kind["ids"], strict=True):
        assert ids is None or fast.encode(text).ids == ids, text
    for other in others:
        assert PRE_TOKENIZERS[other] == PRE_TOKENIZERS[first]


def test_nearly_every_name_was_tried_on_llama_cpp() -> None:
    tried = [name for kind in LLAMA_CPP["byte_pairs"] for name in kind["names"]]
    untried = {"glm4", "glm5", "hy_v4", "falcon-h1", "exaone-moe"}  # as its source has them
    assert PRE_TOKENIZERS.keys() - set(tried) == untried
    assert len({PRE_TOKENIZERS[name] for name in tried}) == len(LLAMA_CPP["byte_pairs"])  # the texts show each pattern


@pytest.mark.parametrize("case", LLAMA_CPP["sentence_pieces"], ids=lambda case: str(case["keys"]))
def test_pieces_are_merged_by_their_scores(case: dict[str, Any], tmp_path: Path) -> None:
    fast = read(tmp_path, "llama", **case["keys"]).fast
    for text, ids in zip(TEXTS, case["ids"], strict=True):
        assert fast.encode(text).ids == ids, text


@pytest.mark.parametrize("case", LLAMA_CPP["ends"], ids=lambda case: f"{case['kind']} {case['keys']}")
def test_where_a_text_begins_and_ends(case: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = read(tmp_path, case["kind"], **case["keys"])
    assert tokenizer.end_ids() == case["ends"]
    assert tokenizer.fast.encode("Hi").ids == case["ids_of_Hi"]


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("gpt2", {"pre": "jais-2"}, "tokenizer.ggml.pre jais-2 is not supported"),
        ("bert", {}, "tokenizer.ggml.model bert is not supported"),
        ("gpt2", {"add_space_prefix": True}, "add_space_prefix is not supported"),
        ("gpt2", {"add_sep_token": True}, "add_sep_token is not supported"),
        ("llama", {"remove_extra_whitespaces": True}, "remove_extra_whitespaces is not supported"),
        ("llama", {"pre": "llama-bpe"}, "pre llama-bpe is not supported with scores"),
    ],
)
def test_what_is_not_known_is_named(kind: str, keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, kind, **keys)


def test_a_text_comes_back_from_its_tokens(tmp_path: Path) -> None:
    for kind in ("gpt2", "llama"):
        fast = read(tmp_path, kind).fast
        for text in TEXTS:
            if not any(token in text for token in SPECIAL):
                assert fast.decode(fast.encode(text, add_special_tokens=False).ids) == text
