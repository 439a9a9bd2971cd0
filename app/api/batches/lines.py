"""The lines of batches, in the form of OpenAI's files: requests, and their answers.

See "Batch API" in OpenAI's reference: a request has custom_id, method, url and body; an answer has custom_id, response
and error.
"""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ...core.nearest import did_you_mean
from ...errors import ApiError, InvalidRequestError, UnsupportedError
from ..edge.inside import Inside

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/score",
    "/v1/rerank",
)
"""What the requests of a batch may be sent to."""
_MAX_ID_LENGTH = 512
_MOST_PROBLEMS = 100
_BEGIN = b'{"id":"'
"""What each answer begins with."""

_decode = msgspec.json.Decoder().decode


class Line(NamedTuple):
    """A request."""

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model, or the adapter, that it names."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None


class Problem(NamedTuple):
    """What is wrong with a line."""

    number: int
    """Of the line, from 1 on."""
    error: ApiError


def parse_line(text: bytes, endpoint: str | None = None) -> Line:
    """A line as a request. Raises InvalidRequestError that names the field. `endpoint`: the only one that is meant."""
    try:
        given = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequestError("the line is no JSON") from None
    except RecursionError:
        raise InvalidRequestError("the line is nested too deeply") from None
    if not isinstance(given, dict):
        raise InvalidRequestError("the line is no JSON object")
    custom_id, url, body = given.get("custom_id"), given.get("url"), given.get("body")
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= _MAX_ID_LENGTH):
        raise InvalidRequestError(f"custom_id: a text of up to {_MAX_ID_LENGTH} characters is needed", "custom_id")
    if given.get("method") != "POST":
        raise InvalidRequestError("method: only POST is possible", "method")
    if url not in ENDPOINTS:
        hint = did_you_mean(url, ENDPOINTS) if isinstance(url, str) else ""
        raise InvalidRequestError(f"url: one of {', '.join(ENDPOINTS)}{hint}", "url")
    if endpoint is not None and url != endpoint:
        raise InvalidRequestError(f"url: the batch is one of {endpoint}", "url")
    if not isinstance(body, dict):
        raise InvalidRequestError("body: a JSON object is needed", "body")
    if body.get("stream"):
        raise UnsupportedError("body.stream: the answers of a batch are whole", "body.stream")
    if body.get("background"):
        raise UnsupportedError("body.background: a batch waits for its answers", "body.background")
    return Line(custom_id, url, body)


def read_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file that are not empty. Some programs write a byte order mark in front of the first."""
    with file.open("rb") as content:
        if content.read(len(BOM_UTF8)) != BOM_UTF8:
            content.seek(0)
        yield from (line for line in content if line.strip())


class Checked(NamedTuple):
    """What a look at all lines has found."""

    num_lines: int
    problems: list[Problem]
    """The first ones."""


def check_lines(lines: Iterable[bytes], endpoint: str | None = None, most: int | None = None) -> Checked:
    """Look at all lines before one is sent. `most`: how many there may be."""
    seen: set[str] = set()
    problems: list[Problem] = []
    count = 0
    for count, text in enumerate(lines, 1):
        try:
            if most is not None and count > most:
                raise InvalidRequestError(f"at most {most} lines (max_batch_lines)")
            custom_id = parse_line(text, endpoint).custom_id
            if custom_id in seen:
                raise InvalidRequestError(f"custom_id: {custom_id!r:.80} occurs twice", "custom_id")
            seen.add(custom_id)
        except ApiError as error:
            problems.append(Problem(count, error))
            if len(problems) == _MOST_PROBLEMS or (most is not None and count > most):
                break
    if not count:
        problems.append(Problem(1, InvalidRequestError("the file has no lines")))
    return Checked(count, problems)


def answer_line(line_id: str, custom_id: str, answer: Inside) -> bytes:
    """The line for an answer."""
    response = {
        "status_code": answer.status,
        "request_id": answer.headers.get("x-request-id", ""),
        "body": msgspec.Raw(answer.body),
    }
    return _line({"id": line_id, "custom_id": custom_id, "response": response, "error": None})


def unanswered_line(line_id: str, custom_id: str, code: str, message: str) -> bytes:
    """The line for a request that was not sent."""
    error = {"code": code, "message": message}
    return _line({"id": line_id, "custom_id": custom_id, "response": None, "error": error})


def _line(content: dict[str, Any]) -> bytes:
    return msgspec.json.encode(content) + b"\n"


class _Answered(msgspec.Struct):
    """What is read of an answer again. A request has no response, and no error."""

    custom_id: str
    response: msgspec.Raw
    error: msgspec.Raw


def answered(file: Path) -> list[str]:
    """The ids of the requests whose answers are in a file, in its order. The end of a line that was broken off goes.

    Raises InvalidRequestError, and leaves the file as it is, if anything else is in it.
    """
    if not file.exists():
        return []
    ids, length = [], 0
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            if not line.endswith(b"\n") and _BEGIN.startswith(line[: len(_BEGIN)]):
                break
            try:
                ids.append(msgspec.json.decode(line, type=_Answered).custom_id)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise InvalidRequestError(f"{file}, line {number}: it is no answer of a batch") from None
            length += len(line)
    with file.open("rb+") as content:
        content.truncate(length)
    return ids
