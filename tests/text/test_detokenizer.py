"""The pieces of a streamed text make up the whole text, and no piece is half a character."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from app.text.detokenizer import make_detokenizer
from app.text.tokenizer import Tokenizer
from tests.text.conftest import save

AWKWARD = [
    "the",
    " fox",
    " ",
    "\n",
    "é",
    "e\u0301",
    "😀",
    "👩‍👩‍👧",
    "漢字",
    "\u200d",
    "ﷺ",
    "</s>",
    "\x00",
    "▁",
    "<0x41>",
]
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(AWKWARD), max_size=12).map("".join)
REPLACEMENT = "\ufffd"


def pieces(tokenizer: Tokenizer, token_ids: list[int], prompt: list[int] | None = None) -> list[str]:
    """The text that each token adds, and the text that is added at the end."""
    detokenizer = make_detokenizer(tokenizer, prompt or [])
    return [*map(detokenizer.feed, token_ids), detokenizer.finish()]


def test_any_tokens_of_a_byte_level_tokenizer(smol: Tokenizer) -> None:
    """This includes invalid bytes, special tokens and unknown ids."""

    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.integers(0, 300) | st.integers(0, smol.vocab_size + 10), max_size=40))
    def check(token_ids: list[int]) -> None:
        assert "".join(pieces(smol, token_ids)) == smol.decode(token_ids)

    check()


def test_added_tokens_of_a_byte_level_tokenizer(smol_folder: Path, tmp_path: Path) -> None:
    """Added tokens stand for their own text, unless they consist of letters of the byte alphabet, which are decoded."""
    fast = FastTokenizer.from_file(str(smol_folder / "tokenizer.json"))
    names = ["<think>", "two words", "é", "Ġx", "漢"]
    fast.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer = Tokenizer(save(fast, tmp_path))
    token_ids = [id_ for name in names for id_ in (fast.token_to_id(name), 300)]
    assert "".join(pieces(tokenizer, token_ids)) == fast.decode(token_ids)


@pytest.mark.parametrize("kind", ["smol", "metaspace", "legacy", "unigram", "wordpiece"])
def test_valid_text_comes_in_whole_characters(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]

    @settings(deadline=None, max_examples=150)
    @given(TEXT)
    def check(text: str) -> None:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        got = pieces(tokenizer, token_ids)
        whole = tokenizer.decode(token_ids)
        assert "".join(got) == whole
        if REPLACEMENT not in whole:  # some vocabularies lack some bytes
            assert got[-1] == ""

    check()


@pytest.mark.parametrize("kind", ["metaspace", "legacy", "unigram", "wordpiece"])
def test_a_prompt_is_context_and_never_leaks(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Prompt and continuation make up the whole text, with its spaces, wherever the cut is."""
    tokenizer = tokenizers[kind]

    @settings(deadline=None, max_examples=150)
    @example("\u0800" * 4 + "\U00010000" * 6 + " ", None)  # only bytes as far back as is looked
    @given(TEXT, st.data())
    def check(text: str, data: st.DataObject | None) -> None:
        token_ids = tokenizer.encode("a b " + text, add_special_tokens=False)
        cut = data.draw(st.integers(2, len(token_ids))) if data else len(token_ids) - 1
        before, after = tokenizer.decode(token_ids[:cut]), "".join(pieces(tokenizer, token_ids[cut:], token_ids[:cut]))
        if REPLACEMENT not in before:
            assert before + after == tokenizer.decode(token_ids)
        else:  # the character that is cut through belongs to neither side; all that follows it is there
            assert tokenizer.decode(token_ids).endswith(after.lstrip(REPLACEMENT))

    check()


def _bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    ids = {tokenizer.token_bytes(id_): id_ for id_ in range(3, 3 + 256)}
    return [ids[bytes([byte])] for byte in data]


def test_invalid_bytes_do_not_spoil_their_neighbours(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["metaspace"]
    prompt, fox = tokenizer.encode("the", False), tokenizer.encode(" fox", False)[-1:]
    word = tokenizer.token_text(fox[0])

    def text(data: bytes, then: list[int], prompt: list[int] = prompt) -> str:
        return "".join(pieces(tokenizer, _bytes(tokenizer, data) + then, prompt))

    assert text("😀".encode() + b"\xf0", []) == "😀" + REPLACEMENT
    assert text(b"\xff" * 5 + "😀".encode(), fox) == REPLACEMENT * 5 + "😀" + word
    assert text(b"\xff" + "漢字".encode(), fox) == REPLACEMENT + "漢字" + word
    half = prompt + _bytes(tokenizer, "€".encode()[:1])
    assert text("€".encode()[1:], fox, half) == REPLACEMENT * 2 + word
    many = _bytes(tokenizer, ("漢" * 20).encode())
    assert text("字".encode(), fox, many) == "字" + word


@pytest.mark.parametrize("kind", ["metaspace", "smol"])
def test_ids_without_text_change_nothing(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    token_ids = tokenizer.encode("the naïve 😀 fox", False)
    noise = [10**6, min(tokenizer.special_ids)]
    noisy = [id_ for token_id in token_ids for id_ in (*noise, token_id)]
    assert "".join(pieces(tokenizer, noisy, tokenizer.encode("a", False))).strip() == "the naïve 😀 fox"
