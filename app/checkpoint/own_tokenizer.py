"""Tokenizers of folders without tokenizer.json: vocabularies of SentencePiece and of tiktoken."""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from .folder import ModelFolder
from .gguf.tokenizer import GgufTokenizer
from .marian import SOURCE, marian_tokenizers
from .sentence_pieces import SentencePieces
from .tiktoken_file import is_tiktoken, tiktoken_tokenizer

TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", SOURCE, "*.tiktoken", "tiktoken.model")


class OwnTokenizer(NamedTuple):
    """A tokenizer of the library `tokenizers`, and tokenizer_config.json for a folder that has none."""

    fast: Any
    config: dict[str, Any]
    source: Any = None
    """Of an encoder-decoder: what the encoder reads is cut by this one, if it is another."""


def tokenizer_file(folder: Path) -> Path | None:
    """The vocabulary of a folder, in one of these forms; None if it has none."""
    return next((file for pattern in TOKENIZER_FILES for file in sorted(folder.glob(pattern))), None)


def own_tokenizer(folder: ModelFolder) -> OwnTokenizer | None:
    """The tokenizer that a folder's vocabulary describes. ValueError for what it says and nobody here knows.

    None if the vocabulary does not say enough: for pieces that are chosen by their probabilities, a model's class
    decides which ids they have, and what stands around a text.
    """
    file = tokenizer_file(folder.path)
    assert file is not None
    config = folder.read_object("tokenizer_config.json")
    declared = {int(id_): token["content"] for id_, token in (config.get("added_tokens_decoder") or {}).items()}
    if file.name == SOURCE:
        written, source = marian_tokenizers(folder.path, config)
        return OwnTokenizer(written, {}, source)
    if is_tiktoken(file):
        tokenizer = OwnTokenizer(tiktoken_tokenizer(file, config), {})
    else:
        try:
            pieces = SentencePieces(file.read_bytes(), config, declared)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from None
        if not pieces.are_merged:
            return None
        of_pieces = GgufTokenizer(pieces)
        tokenizer = OwnTokenizer(of_pieces.fast, of_pieces.config())
    _reach(tokenizer.fast, declared)
    return tokenizer


def _reach(fast: Any, declared: dict[int, str]) -> None:
    """Add tokens up to the last declared one, each under its id. Those in between are reserved.

    Raises ValueError if a declared token cannot have its id, because the vocabulary has another token there.
    """
    first = fast.get_vocab_size()
    texts = [declared.get(id_, f"<|reserved_token_{id_}|>") for id_ in range(first, max(declared, default=0) + 1)]
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in texts])
    for id_, text in declared.items():
        if (found := fast.token_to_id(text)) != id_:
            raise ValueError(
                f"added_tokens_decoder declares {text!r} as token {id_}, and the vocabulary has it as {found}"
            )
