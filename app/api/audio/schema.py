"""The requests of POST /v1/audio/transcriptions and /v1/audio/translations, whose bodies are forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ...errors import InvalidRequestError, UnsupportedError
from ..edge.body import Label, RequestBody, hints, refused, validate

_MOST_FIELDS = 64
_MOST_FIELD_BYTES = 2**16
_GRANULARITIES = "timestamp_granularities"


class SpeechRequest(RequestBody):
    """Write down what is said in a sound file, which is the form's field `file`."""

    hints = hints("user chunking_strategy")
    unsupported = refused("include known_speaker_names known_speaker_references word_timestamps")
    model: Label | None = Field(None, description="the served model's name")
    language: Label | None = Field(None, description="what is spoken, such as en or english; else the model finds out")
    prompt: str = Field("", max_length=4096, description="a text that came before, whose style is gone on with")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, lt=2**63)
    timestamp_granularities: list[str] = Field(default_factory=list)
    stream: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")

    def check(self) -> None:
        """See `RequestBody.check`."""
        if any(name != "segment" for name in self.timestamp_granularities):
            raise UnsupportedError(f"{_GRANULARITIES}: only segment is supported", _GRANULARITIES)
        if self.stream and self.response_format not in ("json", "text"):
            raise InvalidRequestError("stream: only with response_format json or text", "stream")


@dataclass(frozen=True)
class SpeechForm:
    """A form that was read."""

    fields: SpeechRequest
    file: bytes


async def read_form(request: Request, ignored: set[str] | None) -> SpeechForm:
    """The request's form. Raises InvalidRequestError. `ignored`: see `validate`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise InvalidRequestError("the Content-Type must be multipart/form-data")
    try:
        async with request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidRequestError("file: a sound file is missing", "file")
            data = await file.read()
            fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    except HTTPException as error:  # starlette's, for a form that is broken
        raise InvalidRequestError(f"the form cannot be read: {error.detail}") from None
    return SpeechForm(validate(SpeechRequest, _typed(fields), ignored), data)


def _typed(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """A form's texts as the values of a JSON object. What is no such value stays a text, and is refused."""
    values: dict[str, Any] = {}
    for name, text in fields:
        plain = name.removesuffix("[]")
        if plain == _GRANULARITIES:
            values.setdefault(plain, []).append(text)
        elif plain in _PARSERS:
            values[plain] = _parse(plain, text)
        else:
            values[plain] = text
    return values


_PARSERS: Mapping[str, Any] = {
    "temperature": float,
    "seed": int,
    "priority": int,
    "stream": {"true": True, "false": False}.__getitem__,
}


def _parse(name: str, text: str) -> Any:
    try:
        return _PARSERS[name](text)
    except (ValueError, KeyError):
        return text
