"""POST /v1/audio/transcriptions and /v1/audio/translations"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...errors import ApiError
from ...speech.features import FRAMES_OF_A_SECOND
from ...speech.reading import read_sound
from ...speech.sound import Sound
from ..deps import ADMITTED, ServiceDep, entry_of, ignored_fields
from ..edge.answer import json_response, run_unless_disconnected
from ..edge.document import RUNS, answers
from ..edge.errors import ErrorAnswer
from ..edge.form import FORM
from ..edge.request_log import RequestLog
from ..edge.sse import EventStream, done, ended, event
from ..service import Service
from .answer import (
    Duration,
    Transcript,
    TranscriptDelta,
    TranscriptDone,
    srt,
    verbose,
    vtt,
    whole_text,
)
from .places import SoundPlace, SoundPlaces
from .schema import SpeechRequest, read_speech
from .transcribe import Piece, Transcription, speech_of

router = APIRouter()


def _form_schema() -> dict[str, Any]:
    schema = SpeechRequest.model_json_schema()
    schema["properties"]["file"] = {"type": "string", "format": "binary", "description": "WAV, FLAC, Ogg or MP3"}
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}


_ROUTE: dict[str, Any] = {
    "openapi_extra": _form_schema(),
    "responses": answers(Transcript, RUNS, events=(TranscriptDelta, TranscriptDone, ErrorAnswer)),
    "dependencies": ADMITTED,
}


@router.post("/v1/audio/transcriptions", **_ROUTE)
async def create_transcription(request: Request, service: ServiceDep) -> Response:
    """Write down what is said in a sound."""
    return await _respond(request, service, "transcribe")


@router.post("/v1/audio/translations", **_ROUTE)
async def create_translation(request: Request, service: ServiceDep) -> Response:
    """Write down in English what is said in a sound."""
    return await _respond(request, service, "translate")


async def _respond(request: Request, service: Service, task: str) -> Response:
    """Whatever happens, the sound's place is given back, and no work is left."""
    entry = entry_of(request)
    speech_of(service)
    service.ready()
    asked, file = await read_speech(request, ignored_fields(request, service))
    service.check_model(asked.model)
    places: SoundPlaces = request.app.state.sound_places
    place = places.take(file)
    del file  # the place has it, until it has been read
    try:
        transcription = Transcription(service, asked, task, entry)
        response = await run_unless_disconnected(
            request, _transcribed(service, entry, asked, transcription, places, place)
        )
    except BaseException:
        place.leave()
        raise
    if not isinstance(response, EventStream):  # which leaves it at its end
        place.leave()
    return response


async def _transcribed(
    service: Service,
    entry: RequestLog,
    asked: SpeechRequest,
    transcription: Transcription,
    places: SoundPlaces,
    place: SoundPlace,
) -> Response:
    sound = await _read(service, entry, places, place)
    if asked.stream:
        return _stream(entry, transcription, sound, place)
    try:
        pieces = [piece async for piece in transcription.pieces(sound)]
    finally:
        transcription.stop()
    seconds = sound.num_frames / FRAMES_OF_A_SECOND
    return _whole(pieces, asked, transcription.task, transcription.language, seconds)


async def _read(service: Service, entry: RequestLog, places: SoundPlaces, place: SoundPlace) -> Sound:
    """The sound in a place's file, which is given up for it.

    Raises InvalidRequestError for what is no sound, QueueFullError if others have taken up all memory since, and what
    `Service.expired` gives when the deadline comes.
    """
    described, _ = speech_of(service)
    most = service.settings.request_limits.max_audio_seconds
    left = None if entry.deadline is None else entry.deadline - time.monotonic()
    try:
        async with asyncio.timeout(left), places.reading:
            places.check_room()
            sound = await read_sound(place.file, described.num_mel_bins, described.num_frames, most, "file")
            place.file, place.sound = b"", sound
            return sound
    except TimeoutError:
        raise service.expired(entry) from None


def _stream(entry: RequestLog, transcription: Transcription, sound: Sound, place: SoundPlace) -> EventStream:
    entry.is_stream = True

    def end(error: ApiError | None) -> bytes:
        if error is not None:
            entry.note_error(error)
        return b"" if error is None else done(error)

    def stop() -> None:
        transcription.stop()
        place.leave()

    return EventStream(ended(_events(transcription, sound), end), stop)


def _whole(pieces: list[Piece], asked: SpeechRequest, task: str, language: str, seconds: float) -> Response:
    match asked.response_format:
        case "json":
            return json_response(Transcript(whole_text(pieces), Duration(seconds=seconds)))
        case "verbose_json":
            return json_response(verbose(pieces, task, language, seconds, asked))
        case "srt":
            return Response(srt(pieces), media_type="application/x-subrip; charset=utf-8")
        case "vtt":
            return Response(vtt(pieces), media_type="text/vtt; charset=utf-8")
        case "text":
            return Response(whole_text(pieces) + "\n", media_type="text/plain; charset=utf-8")


async def _events(transcription: Transcription, sound: Sound) -> AsyncGenerator[bytes, None]:
    """Each piece of the text as it is known."""
    said: list[Piece] = []
    async with aclosing(transcription.pieces(sound)) as pieces:
        async for piece in pieces:
            yield event(TranscriptDelta(delta=piece.text if said else piece.text.lstrip()))
            said.append(piece)
    yield event(TranscriptDone(text=whole_text(said), usage=Duration(seconds=sound.num_frames / FRAMES_OF_A_SECOND)))
