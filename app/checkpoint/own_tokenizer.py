"""Tokenizers of folders without tokenizer.json: vocabularies of SentencePiece and of tiktoken."""

import base64
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from .byte_alphabet import byte_alphabet
from .folder import ModelFolder
from .gguf.pre_tokenizers import PRE_TOKENIZERS
from .gguf.tokenizer import GgufTokenizer

TOKENIZER_FILES = ("tokenizer.model", "*.tiktoken", "tiktoken.model")
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""A line of a file of tiktoken."""


class OwnTokenizer(NamedTuple):
    """A tokenizer of the library `tokenizers`, and tokenizer_config.json for a folder that has none."""

    fast: Any
    config: dict[str, Any]


def tokenizer_file(folder: Path) -> Path | None:
    """The vocabulary of a folder, in one of these forms; None if it has none."""
    return next((file for pattern in TOKENIZER_FILES for file in sorted(folder.glob(pattern))), None)


def own_tokenizer(folder: ModelFolder) -> OwnTokenizer:
    """The tokenizer that a folder's vocabulary describes. ValueError for what it says and nobody here knows."""
    file = tokenizer_file(folder.path)
    assert file is not None
    config = folder.read_object("tokenizer_config.json")
    with file.open("rb") as opened:
        is_tiktoken = _RANK.match(opened.readline(1000)) is not None
    declared = {int(id_): token["content"] for id_, token in (config.get("added_tokens_decoder") or {}).items()}
    tokenizer = _tiktoken(file, config) if is_tiktoken else _sentence_pieces(file, config, declared)
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


# ---------------------------------------------------------------------- tiktoken

_KIMI_LETTERS = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_KIMI_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_KIMI = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_KIMI_LETTERS}]*[\p{{Ll}}{_KIMI_LETTERS}]+{_KIMI_END}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_KIMI_LETTERS}]+[\p{{Ll}}{_KIMI_LETTERS}]*{_KIMI_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205)))


def _tiktoken(file: Path, config: dict[str, Any]) -> OwnTokenizer:
    """Bytes, merged in the order of their ranks.

    How a text is cut before is not in the file, but in the code of a class, by whose name it is known here.
    """
    known: dict[Any, tuple[str, tuple[str, ...]]] = {
        "QWenTokenizer": (PRE_TOKENIZERS["qwen2"].patterns[0], _QWEN_TOKENS),
        "ChatGLM4Tokenizer": (PRE_TOKENIZERS["glm4"].patterns[0], ()),
        "TikTokenTokenizer": (_KIMI, ()),
    }
    kind = config.get("tokenizer_class")
    if kind not in known:
        raise ValueError(f"nothing is known of how the tokenizer class {kind} cuts a text for {file.name}")
    pattern, special = known[kind]
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read_bytes().splitlines())}
    fast = Tokenizer(BPE(*_merges(ranks), ignore_merges=True))
    cut, bytes_ = Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = Sequence([cut, bytes_])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return OwnTokenizer(fast, {})


def _merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of BPE, and its merges: of all neighbours that make a token, the first rank first."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    texts = {token: "".join(letters[byte] for byte in token) for token in ranks}
    found = [
        (rank, ranks[token[:at]], ranks[token[at:]], texts[token[:at]], texts[token[at:]])
        for token, rank in ranks.items()
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    return {texts[token]: rank for token, rank in ranks.items()}, [(left, right) for *_, left, right in sorted(found)]


# ---------------------------------------------------------------------- SentencePiece


def _sentence_pieces(file: Path, config: dict[str, Any], declared: dict[int, str]) -> OwnTokenizer:
    """Pieces that are merged by their scores, as a GGUF file has them."""
    model = _SentencePieces(file.read_bytes(), config, declared)
    tokenizer = GgufTokenizer(model)
    return OwnTokenizer(tokenizer.fast, tokenizer.config())


_BPE = 2
"""Of SentencePiece's types of models."""
_CONTROL = 3
"""Of SentencePiece's types of pieces."""
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
"""Fields of SentencePiece's ModelProto, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto"""


class _SentencePieces:
    """What a GGUF file with the same vocabulary would say. ValueError for a file that is none of SentencePiece."""

    def __init__(self, content: bytes, config: dict[str, Any], declared: dict[int, str]) -> None:
        """`declared`: tokens by their ids, which take the places of pieces: chat models name reserved ones so."""
        fields = list(_fields(content))
        pieces = [dict(_fields(value)) for number, value in fields if number == _PIECE]
        trainer, normalizer = (
            {key: value for number, part in fields if number == wanted for key, value in _fields(part)}
            for wanted in (_TRAINER, _NORMALIZER)
        )
        if not pieces or trainer.get(3, 1) != _BPE:
            raise ValueError("tokenizer.model is not of SentencePiece's kind BPE, which alone is supported")
        if normalizer.get(2):
            raise ValueError(f"SentencePiece's normalization {_text(normalizer.get(1))} is not supported")
        texts = [declared.get(id_, _text(piece.get(1))) for id_, piece in enumerate(pieces)]
        types = [_CONTROL if id_ in declared else piece.get(3, 1) for id_, piece in enumerate(pieces)]
        self._said: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": [_number(piece.get(2)) for piece in pieces],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
            "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
            "tokenizer.ggml.add_bos_token": config.get("add_bos_token", True),
            "tokenizer.ggml.add_eos_token": config.get("add_eos_token", False),
            "tokenizer.ggml.unknown_token_id": trainer.get(40, 0),
            "tokenizer.ggml.bos_token_id": trainer.get(41, 1),
            "tokenizer.ggml.eos_token_id": trainer.get(42, 2),
        }

    def get(self, key: str, default: Any = None) -> Any:
        """See `GgufFile.get`."""
        return self._said.get(key, default)

    def all_of(self, _prefix: str) -> dict[str, Any]:
        """See `GgufFile.all_of`."""
        return {}


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protobuf message: whole numbers, or bytes."""
    at = 0

    def whole() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte: int = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    try:
        while at < len(message):
            number, kind = divmod(whole(), 8)
            if kind == 0:
                yield number, whole()
                continue
            length = {1: 8, 5: 4}[kind] if kind != 2 else whole()
            if at + length > len(message):
                raise IndexError
            yield number, message[at : at + length]
            at += length
    except (IndexError, KeyError, TypeError):
        raise ValueError("tokenizer.model is no readable file of SentencePiece or tiktoken") from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _number(value: Any) -> float:
    return float(struct.unpack("<f", value)[0]) if isinstance(value, bytes) else 0.0
