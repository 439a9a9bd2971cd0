"""A transcription's answer, in the forms that OpenAI's API has."""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from ...speech.languages import NAMES
from ..edge.answer import AnswerBody
from .schema import SpeechRequest
from .transcribe import Piece


class Duration(AnswerBody, kw_only=True):
    """What was used."""

    type: Literal["duration"] = "duration"
    seconds: float


class Transcript(AnswerBody):
    """The text, with response_format json."""

    text: str
    usage: Duration


class TranscriptSegment(AnswerBody):
    """A piece of the text."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptWord(AnswerBody):
    """A word, and when it was spoken."""

    word: str
    start: float
    end: float


class VerboseTranscript(AnswerBody):
    """The text and its pieces, with response_format verbose_json."""

    task: str
    language: str
    duration: float
    text: str
    usage: Duration
    segments: list[TranscriptSegment] | UnsetType = UNSET
    words: list[TranscriptWord] | UnsetType = UNSET


class TranscriptDelta(AnswerBody, kw_only=True):
    """More of the text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TranscriptDone(AnswerBody, kw_only=True):
    """The whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: Duration


def whole_text(pieces: Sequence[Piece]) -> str:
    """All that was said."""
    return "".join(piece.text for piece in pieces).strip()


def verbose(
    pieces: Sequence[Piece], task: str, language: str, seconds: float, asked: SpeechRequest
) -> VerboseTranscript:
    """The text with all that is known of it."""
    segments = [
        TranscriptSegment(
            number,
            piece.seek,
            round(piece.start, 3),
            round(piece.end, 3),
            piece.text,
            piece.tokens,
            piece.window.temperature,
            piece.window.avg_logprob,
            piece.window.compression_ratio,
            piece.window.no_speech_prob,
        )
        for number, piece in enumerate(pieces)
    ]
    name, used = NAMES.get(language, language), Duration(seconds=seconds)
    words = [
        TranscriptWord(word.text, round(word.start, 3), round(word.end, 3)) for piece in pieces for word in piece.words
    ]
    answer = VerboseTranscript(task, name, seconds, whole_text(pieces), used)
    if asked.wants_segments:
        answer.segments = segments
    if asked.wants_words:
        answer.words = words
    return answer


def srt(pieces: Sequence[Piece]) -> str:
    """SubRip's subtitles."""
    return "".join(
        f"{number}\n{_time(piece.start, ',')} --> {_time(piece.end, ',')}\n{_line(piece)}\n\n"
        for number, piece in enumerate(pieces, 1)
    )


def vtt(pieces: Sequence[Piece]) -> str:
    """Subtitles as WebVTT has them (W3C)."""
    cues = (f"{_time(piece.start, '.')} --> {_time(piece.end, '.')}\n{_line(piece)}\n\n" for piece in pieces)
    return "WEBVTT\n\n" + "".join(cues)


def _line(piece: Piece) -> str:
    """An arrow would begin another cue."""
    return piece.text.strip().replace("-->", "->")


def _time(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and thousandths."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
