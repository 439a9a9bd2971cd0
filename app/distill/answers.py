"""What the teacher is asked and what it says, and the file in which answers are kept.

The file has one JSON object a line: first what was asked of whom (`Header`), then answers, in the order of the
questions. So a run that was broken off goes on behind the last whole line.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ..errors import StartupError

TOP = 20
"""Most probable tokens of which the probability is kept at each position."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, and the luck and temperature with which it is answered."""

    prompt: list[int]
    """Token ids."""
    temperature: float
    seed: int
    held_out: bool
    """Whether the answer only serves to measure."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of n tokens, with the teacher's distribution at each of them, at temperature 1."""

    question: Question
    tokens: list[int]
    """Token ids, (n,)."""
    top_ids: list[list[int]]
    """(n, top): the most probable tokens."""
    top_logprobs: list[list[float]]
    """Their log probabilities."""
    rest: list[float]
    """(n,): the probability of all other tokens together."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What answers depend on."""

    teacher: str
    """Name, dtype and quantization."""
    max_tokens: int
    states: int
    """Numbers of a hidden state, if these are kept, too; else 0."""
    questions: str
    """A digest of all of them."""


def digest(questions: Sequence[Question]) -> str:
    """A number that differs where questions do."""
    return hashlib.sha256(msgspec.msgpack.encode(questions)).hexdigest()


class AnswerFile:
    """Answers on disk."""

    def __init__(self, path: Path, header: Header) -> None:
        """Open a file, or begin one. Raises StartupError if it is of other questions, or of another teacher."""
        self._path = path
        if not path.exists() or b"\n" not in path.read_bytes():
            path.write_bytes(msgspec.json.encode(header) + b"\n")
        self._drop_broken_line()
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.readline(), type=Header)
        except msgspec.MsgspecError as error:
            raise StartupError(f"--out: {path} is not a file of answers: {error}") from error
        for name in Header.__struct_fields__:
            if getattr(found, name) != getattr(header, name):
                raise StartupError(f"--out: {path} was begun with other {name}: name another folder, or remove it")

    def _drop_broken_line(self) -> None:
        content = self._path.read_bytes()
        if not content.endswith(b"\n"):
            self._path.write_bytes(content[: content.rindex(b"\n") + 1])

    def read(self) -> Iterator[Answer]:
        """The answers that are there, in order."""
        decoder = msgspec.json.Decoder(Answer)
        with self._path.open("rb") as file:
            file.readline()
            yield from map(decoder.decode, file)

    def add(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """Keep answers as they come, and hand them on."""
        with self._path.open("ab") as file:
            for answer in answers:
                file.write(msgspec.json.encode(answer) + b"\n")
                file.flush()
                yield answer
