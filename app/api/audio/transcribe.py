"""What is said in a sound, window by window, as openai/whisper does it (Radford et al., 2022, 3.8).

The encoder reads 30 seconds at a time. The decoder's text has times in it, and the next window begins where the last
whole piece of text ended.
"""

import math
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from ...checkpoint.encoder_decoders import EncoderDecoderConfig
from ...checkpoint.whisper import SpeechTokens
from ...core.media import Media
from ...core.sampling import SamplingParams, TokenRules
from ...core.sources import sound_source
from ...errors import InvalidRequestError, UnsupportedError
from ...speech.features import FRAMES_OF_A_SECOND, Floats
from ...speech.languages import NAMES
from ...speech.segments import Segment, cut
from ...text.output_processor import StopConditions
from ..edge.request_log import RequestLog
from ..generation.choices import Choice
from ..generation.in_turn import InTurn, Written
from ..service import Service
from .schema import SpeechRequest


@dataclass(frozen=True)
class Piece:
    """A piece of text, and when it was spoken."""

    start: float
    """Seconds from the beginning of the sound."""
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    """How much shorter the text becomes where it repeats itself."""
    seek: int
    """The frame at which its window begins."""


def speech_of(service: Service) -> tuple[EncoderDecoderConfig, SpeechTokens]:
    """How the model is told what to do. Raises UnsupportedError if it does not read sound."""
    described = service.encoder_decoder
    if described is None or described.speech is None:
        raise UnsupportedError("model: this model does not read sound", "model")
    return described, described.speech


class Transcription:
    """One sound on its way to text."""

    def __init__(self, service: Service, asked: SpeechRequest, task: str, entry: RequestLog) -> None:
        """Raises InvalidRequestError for a language or a task that the model does not know."""
        self._service, self._asked = service, asked
        self.task = task
        self._described, self._speech = speech_of(service)
        if task != "transcribe" and task not in self._speech.tasks:
            raise UnsupportedError("model: this model does not translate", "model")
        self.language = _code(self._speech, asked.language)
        """Its code; empty as long as nobody knows it."""
        self._turns = InTurn(service, asked.priority, entry)

    def stop(self) -> None:
        """End the work that is left."""
        self._turns.stop()

    async def pieces(self, mel: Floats, num_frames: int) -> AsyncGenerator[Piece, None]:
        """The pieces of text of a spectrogram (bands, frames), of which `num_frames` are sound."""
        length = self._described.num_frames
        begin = 0
        earlier = self._earlier_text()
        while begin < num_frames:
            part = mel[:, begin : begin + length]
            source = self._source(np.pad(part, ((0, 0), (0, length - part.shape[1]))))
            if not self.language:
                self.language = await self._find_language(source)
            tokens, logprobs = await self._write(earlier + self._prompt(), source)
            segments, step = cut(tokens, self._speech.timestamps.first, min(length, num_frames - begin))
            for segment in segments:
                if piece := self._piece(segment, begin, logprobs):
                    yield piece
            begin, earlier = begin + step, []

    def _source(self, mel: Floats) -> Media:
        assert self._described.max_source_len is not None
        return sound_source(np.ascontiguousarray(mel), self._described.max_source_len)

    def _piece(self, segment: Segment, begin: int, logprobs: list[float]) -> Piece | None:
        text = self._service.tokenizer.decode(segment.tokens)
        if not text.strip():
            return None
        data, offset = text.encode(), begin / FRAMES_OF_A_SECOND
        return Piece(
            start=offset + segment.start,
            end=offset + segment.end,
            text=text,
            tokens=segment.tokens,
            avg_logprob=math.fsum(logprobs[segment.first : segment.last]) / (segment.last - segment.first),
            compression_ratio=len(data) / len(zlib.compress(data)),
            seek=begin,
        )

    # ------------------------------------------------------------------ what the decoder is told

    def _prompt(self) -> list[int]:
        speech = self._speech
        of_language = [speech.languages[self.language]] if speech.languages else []
        of_task = [speech.tasks[self.task]] if speech.tasks else []
        return [speech.start, *of_language, *of_task]

    def _earlier_text(self) -> list[int]:
        """Before the prompt of the first window: the client's text, as far as there is room, its end first."""
        if not self._asked.prompt:
            return []
        if self._speech.previous is None:
            raise UnsupportedError("prompt: this model takes none", "prompt")
        room = self._service.ready().max_model_len // 2 - 1
        text = self._service.tokenizer.encode(" " + self._asked.prompt.strip(), add_special_tokens=False)
        return [self._speech.previous, *text[-room:]]

    async def _find_language(self, source: Media) -> str:
        """The most probable one: what the model says behind the token that begins a text."""
        codes = {token: code for code, token in self._speech.languages.items()}
        rules = TokenRules(only_first=sorted(codes))
        sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, rules=rules)
        written = await self._run([self._speech.start], source, sampling)
        return codes[written.token_ids[0]]

    async def _write(self, prompt: list[int], source: Media) -> tuple[list[int], list[float]]:
        """A window's text without the token that ends it, and its log probabilities."""
        rules = TokenRules(
            suppressed=sorted(self._described.suppressed),
            suppressed_first=sorted(self._described.suppressed_first),
            timestamps=self._speech.timestamps,
        )
        end = self._speech.timestamps.end
        sampling = SamplingParams(
            max_tokens=self._service.ready().max_model_len - len(prompt),
            seed=self._asked.seed,
            temperature=self._asked.temperature,
            stop_token_ids=frozenset([end]),
            logprobs=0,
            rules=rules,
        )
        written = await self._run(prompt, source, sampling)
        tokens = written.token_ids
        return (tokens[:-1] if tokens[-1:] == [end] else tokens), written.logprobs

    async def _run(self, prompt: list[int], source: Media, sampling: SamplingParams) -> Written:
        (written,) = await self._turns.run([Choice(prompt, sampling, StopConditions(), source=source)])
        return written


def _code(speech: SpeechTokens, asked: str | None) -> str:
    """The code of a language that was asked for by its code or its name; empty for none."""
    if not speech.languages:
        if asked is not None and asked.lower() not in ("en", "english"):
            raise InvalidRequestError("language: this model knows English alone", "language")
        return "en"
    if not asked:
        return ""
    name = asked.lower()
    code = name if name in speech.languages else next((code for code, told in NAMES.items() if told == name), "")
    if code not in speech.languages:
        raise InvalidRequestError(f"language: this model does not know the language {asked[:40]}", "language")
    return code
