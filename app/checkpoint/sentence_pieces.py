"""What a vocabulary of SentencePiece says. It is a protobuf message."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_BPE = 2
"""Of SentencePiece's types of models."""
_CONTROL = 3
"""Of SentencePiece's types of pieces."""
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
"""Fields of SentencePiece's ModelProto, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto"""


class Piece(NamedTuple):
    """A piece of a vocabulary."""

    text: str
    score: float
    kind: int
    """SentencePiece's type of it."""


class PieceFile(NamedTuple):
    """What a vocabulary says: the last two by the numbers of their fields."""

    pieces: list[Piece]
    trainer: dict[int, Any]
    normalizer: dict[int, Any]


def read_pieces(content: bytes) -> PieceFile:
    """ValueError for a file that is none of SentencePiece."""
    fields = list(_fields(content))
    pieces = [dict(_fields(value)) for number, value in fields if number == _PIECE]
    trainer, normalizer = (
        {key: value for number, part in fields if number == wanted for key, value in _fields(part)}
        for wanted in (_TRAINER, _NORMALIZER)
    )
    if not pieces:
        raise ValueError("a vocabulary of SentencePiece has no pieces")
    read = [Piece(_text(piece.get(1)), _number(piece.get(2)), piece.get(3, 1)) for piece in pieces]
    return PieceFile(read, trainer, normalizer)


class SentencePieces:
    """What a GGUF file with the same vocabulary would say. ValueError for a file that is none of SentencePiece."""

    def __init__(self, content: bytes, config: dict[str, Any], declared: dict[int, str]) -> None:
        """`declared`: tokens by their ids, which take the places of pieces: chat models name reserved ones so."""
        pieces, trainer, normalizer = read_pieces(content)
        self.are_merged = trainer.get(3, 1) == _BPE
        """Whether pieces are merged by their scores; else the most probable ones make up a text (Kudo, 2018)."""
        if self.are_merged and normalizer.get(2):
            raise ValueError(f"SentencePiece's normalization {_text(normalizer.get(1))} is not supported")
        texts = [declared.get(id_, piece.text) for id_, piece in enumerate(pieces)]
        types = [_CONTROL if id_ in declared else piece.kind for id_, piece in enumerate(pieces)]
        self._said: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": [piece.score for piece in pieces],
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
        raise ValueError("the vocabulary is no readable file of SentencePiece or tiktoken") from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _number(value: Any) -> float:
    return float(struct.unpack("<f", value)[0]) if isinstance(value, bytes) else 0.0
