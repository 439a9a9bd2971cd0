"""The requests of POST /v1/audio/transcriptions and /v1/audio/translations, whose bodies are forms."""

from typing import Literal

from fastapi import Request
from pydantic import Field

from ...errors import InvalidRequestError
from ..edge.body import Label, RequestBody, hints, refused, validate
from ..edge.form import FORM, Files, is_form, read_form, values_of

_GRANULARITIES = "timestamp_granularities"


class SpeechRequest(RequestBody):
    """Write down what is said in a sound file, which is the form's field `file`."""

    hints = hints("user chunking_strategy")
    unsupported = refused("include known_speaker_names known_speaker_references word_timestamps")
    model: Label | None = Field(None, description="the served model's name")
    language: Label | None = Field(None, description="what is spoken, such as en or english; else the model finds out")
    prompt: str = Field("", max_length=4096, description="a text that came before, whose style is gone on with")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=2, description="0: as low as what is written allows, see the thresholds")
    compression_ratio_threshold: float = Field(2.4, description="a text that repeats itself more is written again")
    logprob_threshold: float = Field(-1.0, description="a text less probable than this is written again")
    no_speech_threshold: float = Field(0.6, description="improbable texts are dropped where silence is as probable")
    condition_on_previous_text: bool = Field(False, description="whether a window's text goes on from the one before")
    seed: int = Field(0, ge=0, lt=2**63)
    timestamp_granularities: list[Literal["segment", "word"]] = Field(default_factory=list, max_length=8)
    stream: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="lower runs first")

    @property
    def wants_words(self) -> bool:
        """Whether words are to have times."""
        return "word" in self.timestamp_granularities

    @property
    def wants_segments(self) -> bool:
        """Whether a verbose answer is to have segments."""
        return not self.wants_words or "segment" in self.timestamp_granularities

    def check(self) -> None:
        """See `RequestBody.check`."""
        if self.wants_words and self.response_format != "verbose_json":
            raise InvalidRequestError(f"{_GRANULARITIES}: word only with response_format verbose_json", _GRANULARITIES)
        if self.stream and self.response_format not in ("json", "text"):
            raise InvalidRequestError("stream: only with response_format json or text", "stream")


async def read_speech(request: Request, ignored: set[str] | None) -> tuple[SpeechRequest, bytes]:
    """The fields of the request's form, and its file. Raises InvalidRequestError. `ignored`: see `validate`."""
    if not is_form(request):
        raise InvalidRequestError(f"the Content-Type must be {FORM}")
    values = values_of(SpeechRequest, await read_form(request, Files(fields=("file",), most=1)))
    file = values.pop("file", None)
    if file is None:
        raise InvalidRequestError("file: a sound file is missing", "file")
    return validate(SpeechRequest, values, ignored, is_form=True), file
