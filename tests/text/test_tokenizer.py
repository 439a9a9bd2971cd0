"""The tokenizer gives the same ids as transformers, and control tokens that users type stay text."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from app.errors import ModelError
from app.text.tokenizer import Tokenizer
from tests.text.conftest import copy, oracle_of, write_json

KINDS = ("smol", "metaspace", "legacy", "unigram", "wordpiece")
TEXT = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["the", " quick", "  ", "\n\n", "é", "e\u0301", "😀", "👩‍👩‍👧", "漢字", "<s>", "</s>", "<|im_end|>", "12345"]
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_and_text_are_those_of_transformers(
    kind: str, add_special_tokens: bool, tokenizers: dict[str, Tokenizer], oracles: dict[str, Any]
) -> None:
    ours, oracle = tokenizers[kind], oracles[kind]

    @settings(deadline=None, max_examples=60)
    @given(TEXT)
    @example("")
    def check(text: str) -> None:
        ids = ours.encode(text, add_special_tokens)
        assert ids == oracle.encode(text, add_special_tokens=add_special_tokens)
        for skip in (True, False):
            assert ours.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)

    check()
    assert ours.special_ids == {id_ for id_, token in oracle.added_tokens_decoder.items() if token.special}
    # A GGUF file's vocabulary ends a text with <|endoftext|> and <reponame> too, by llama.cpp's rules.
    assert ours.eos_token_ids == ({0, 2, 4} if kind == "smol" else {oracle.eos_token_id})
    assert ours.vocab_size == len(oracle)


MARK = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.mark.parametrize(
    ("files", "adds"),
    [
        ({"tokenizer_config": {"eos_token": "fox"}}, False),
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "fox", **MARK}}}, False),
        ({"tokenizer_config": {"extra_special_tokens": ["fox", "lazy"]}}, False),
        ({"tokenizer_config": {"additional_special_tokens": ["fox"]}}, False),
        ({"tokenizer_config": {"added_tokens_decoder": "next"}}, True),
    ],
)
def test_tokens_that_only_other_files_declare(
    files: dict[str, Any], adds: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    size = Tokenizer(folders["wordpiece"]).vocab_size
    for content in files.values():
        if content.get("added_tokens_decoder") == "next":
            entries = [{"content": "<turn>", **MARK, "special": True}, {"content": "<think>", **MARK, "special": False}]
            content["added_tokens_decoder"] = {str(size + i): entry for i, entry in enumerate(entries)}
    files["tokenizer_config"]["tokenizer_class"] = "TokenizersBackend"
    folder = copy(folders["wordpiece"], tmp_path, **files)
    ours, oracle = Tokenizer(folder), oracle_of(folder)
    text = "the fox<turn>foxes <think> lazy dog</s>"
    assert ours.encode(text) == oracle.encode(text)
    assert (max(ours.encode(text)) >= size) is adds
    assert ours.decode(ours.encode(text)) == oracle.decode(ours.encode(text), skip_special_tokens=True)
    assert ours.special_tokens == oracle.special_tokens_map
    assert ours.decode(ours.encode(text)) != Tokenizer(folders["wordpiece"]).decode(ours.encode(text))


def test_tokens_that_the_model_has_no_place_for_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    config = {"pad_token": "[PAD]", "added_tokens_decoder": {"99999": {"content": "<far>", **MARK, "special": True}}}
    ours = Tokenizer(copy(folders["wordpiece"], tmp_path, tokenizer_config=config))
    assert ours.vocab_size == Tokenizer(folders["wordpiece"]).vocab_size


def test_generation_defaults_are_read_from_the_models_files(folders: dict[str, Path], tmp_path: Path) -> None:
    generation = {"eos_token_id": [7, 9], "temperature": 0.6, "top_k": 20, "top_p": None, "max_length": 99}
    folder = copy(folders["metaspace"], tmp_path, generation_config=generation, config={"eos_token_id": 8})
    ours = Tokenizer(folder)
    assert ours.eos_token_ids == {2, 7, 8, 9}
    assert ours.default_sampling == {"temperature": 0.6, "top_k": 20}
    assert ours.special_tokens["bos_token"] == "<s>"
    write_json(folder / "generation_config.json", {**generation, "do_sample": False})
    assert Tokenizer(folder).default_sampling == {}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", b'{"version": "1.0"', "tokenizer.json is not a usable tokenizer"),
        ("tokenizer_config.json", b"\xff\xfe", "tokenizer_config.json is not readable JSON"),
        ("generation_config.json", b'{"eos_token_id": ["</s>"]}', r"config.json.*: eos_token_id is \['</s>'\]"),
        ("generation_config.json", b'{"temperature": "hot"}', "config.json.*: temperature is 'hot'"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"5": {}}}', "tokenizer_config.json declares broken"),
    ],
)
def test_a_broken_folder_is_named(
    file: str, content: bytes | None, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["wordpiece"], tmp_path)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        Tokenizer(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_that_users_typed_stay_text(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    """This also holds where they are ordinary entries of the vocabulary, as in the Unigram one here."""
    ours = tokenizers[kind]
    commands = ours.special_ids - set(ours.encode("<unk>", False))  # <unk> also stands for letters that are not known
    for token in ours.control_tokens:
        ids = ours.encode_segments([("the fox ", True), (token, False), (" jumps", True)])
        assert commands.isdisjoint(ids)
        if kind != "wordpiece":  # which does not keep spaces
            assert ours.decode(ids, skip_special_tokens=False).strip() == f"the fox {token} jumps"


@pytest.mark.parametrize("kind", ["smol", "metaspace", "unigram"])
def test_bytes_of_tokens_make_up_the_text(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    ours = tokenizers[kind]
    text = "the naïve 😀 fox"
    together = b"".join(map(ours.token_bytes, ours.encode(text, add_special_tokens=False)))
    assert together.decode().strip() == text
    assert ours.token_bytes(10**6) == b""
    assert ours.token_text(ours.encode("é", False)[-1]).strip() in ("é", "\ufffd")


@pytest.mark.parametrize("names", [["input_ids", "token_type_ids"], ["input_ids"]])
def test_types_of_tokens_are_told_to_models_that_were_trained_with_them(
    names: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names}
    folder = copy(folders["wordpiece"], tmp_path, tokenizer_config=config)
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    fast.save(str(folder / "tokenizer.json"))
    ours, theirs = Tokenizer(folder).encoder_input(("the", "quick"), None), oracle_of(folder)("the", "quick")
    assert ours.token_ids == theirs["input_ids"]
    assert ours.type_ids == theirs.get("token_type_ids", [0] * len(ours.token_ids))
    assert (1 in ours.type_ids) == ("token_type_ids" in names)
