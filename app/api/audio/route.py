"""POST /v1/audio/transcriptions and /v1/audio/translations"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...errors import ApiError
from ...speech.features import FRAMES_OF_A_SECOND, Floats
from ...speech.reading import read_sound
from ..deps import ADMITTED, ServiceDep
from ..edge.answer import json_response, run_unless_disconnected
from ..edge.document import RUNS, answers
from ..edge.errors import ErrorAnswer
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
from .schema import SpeechForm, SpeechRequest, read_form
from .transcribe import Piece, Transcription, speech_of

router = APIRouter()


def _form_schema() -> dict[str, Any]:
    schema = SpeechRequest.model_json_schema()
    schema["properties"]["file"] = {"type": "string", "format": "binary", "description": "WAV, FLAC, Ogg or MP3"}
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


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
    entry: RequestLog = request.scope["request_log"]
    speech_of(service)
    service.ready()
    form = await read_form(request, entry.ignored_fields if service.settings.unknown_fields == "ignore" else None)
    service.check_model(form.fields.model)
    places: SoundPlaces = request.app.state.sound_places
    place = places.take()
    try:
        response = await _transcribed(request, service, form, task, place)
    except BaseException:
        place.leave()
        raise
    if not isinstance(response, EventStream):  # which leaves it at its end
        place.leave()
    return response


async def _transcribed(request: Request, service: Service, form: SpeechForm, task: str, place: SoundPlace) -> Response:
    entry: RequestLog = request.scope["request_log"]
    described, _ = speech_of(service)
    transcription = Transcription(service, form.fields, task, entry)
    most = service.settings.request_limits.max_audio_seconds
    sound = await read_sound(form.file, described.num_mel_bins, described.num_frames, most, "file")
    if form.fields.stream:
        entry.is_stream = True
        events = _events(transcription, sound.mel, sound.num_frames)

        def end(error: ApiError | None) -> bytes:
            if error is not None:
                entry.note_error(error)
            return b"" if error is None else done(error)

        def stop() -> None:
            transcription.stop()
            place.leave()

        return EventStream(ended(events, end), stop)

    async def work() -> Response:
        pieces = [piece async for piece in transcription.pieces(sound.mel, sound.num_frames)]
        return _whole(pieces, form.fields, task, transcription.language, sound.num_frames / FRAMES_OF_A_SECOND)

    try:
        return await run_unless_disconnected(request, work())
    finally:
        transcription.stop()


def _whole(pieces: list[Piece], asked: SpeechRequest, task: str, language: str, seconds: float) -> Response:
    match asked.response_format:
        case "json":
            return json_response(Transcript(whole_text(pieces), Duration(seconds=seconds)))
        case "verbose_json":
            return json_response(verbose(pieces, task, language, seconds, asked.temperature))
        case "srt":
            return Response(srt(pieces), media_type="application/x-subrip; charset=utf-8")
        case "vtt":
            return Response(vtt(pieces), media_type="text/vtt; charset=utf-8")
        case "text":
            return Response(whole_text(pieces) + "\n", media_type="text/plain; charset=utf-8")


async def _events(transcription: Transcription, mel: Floats, num_frames: int) -> AsyncGenerator[bytes, None]:
    """Each piece of the text as it is known."""
    said: list[Piece] = []
    async with aclosing(transcription.pieces(mel, num_frames)) as pieces:
        async for piece in pieces:
            yield event(TranscriptDelta(delta=piece.text if said else piece.text.lstrip()))
            said.append(piece)
    yield event(TranscriptDone(text=whole_text(said), usage=Duration(seconds=num_frames / FRAMES_OF_A_SECOND)))
