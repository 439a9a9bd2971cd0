"""What is said in a sound, window by window, as openai/whisper does it (Radford et al., 2022, 3.8).

The encoder reads 30 seconds at a time. The decoder's text has times in it, and the next window begins where the last
whole piece of text ended.
"""

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from ...checkpoint.encoder_decoders import EncoderDecoderConfig
from ...checkpoint.whisper import SpeechTokens
from ...core.media import Media
from ...core.sampling import Alignment, SamplingParams, TokenRules
from ...core.sources import sound_source
from ...errors import InvalidRequestError, UnsupportedError
from ...speech.features import FRAMES_OF_A_SECOND, Floats
from ...speech.languages import NAMES
from ...speech.segments import FRAMES_OF_A_STEP, SECONDS_OF_A_STEP, Segment, cut
from ...speech.sound import Sound
from ...speech.words import token_places, words_of
from ...text.output_processor import StopConditions
from ..edge.request_log import RequestLog
from ..generation.choices import Choice, usable_temperature
from ..generation.in_turn import InTurn, Written
from ..service import Service
from .schema import SpeechRequest

_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The text of a window is written again at the next one, as long as it is poor."""
_FORGETS_ABOVE = 0.5
"""A text that took a higher temperature may be wrong, and is nothing to go on from."""


@dataclass(frozen=True)
class Window:
    """The text of a window."""

    tokens: list[int]
    """Times are among them; the token that ends the text is not."""
    temperature: float
    avg_logprob: float
    """Of a token, the one that ends the text included, among those that the rules for texts leave."""
    compression_ratio: float
    """How much shorter the text becomes where it repeats itself."""
    no_speech_prob: float


@dataclass(frozen=True)
class SpokenWord:
    """A word, and when it was spoken, in seconds from the beginning of the sound."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Piece:
    """A piece of text, and when it was spoken."""

    start: float
    """Seconds from the beginning of the sound."""
    end: float
    text: str
    tokens: list[int]
    words: list[SpokenWord]
    """If these were asked for."""
    window: Window
    seek: int
    """The frame at which the window begins."""


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
        if asked.wants_words and not self._speech.alignment_heads:
            raise UnsupportedError(
                "timestamp_granularities: words have no times, since no alignment_heads of this model are known",
                "timestamp_granularities",
            )
        self._turns = InTurn(service, asked.priority, entry)

    def stop(self) -> None:
        """End the work that is left."""
        self._turns.stop()

    async def pieces(self, sound: Sound) -> AsyncGenerator[Piece, None]:
        """The pieces of text of a sound, which is given up window by window."""
        length, num_frames = self._described.num_frames, sound.num_frames
        begin, earlier = 0, self._asked_before()
        while begin < num_frames:
            source = self._source(sound.window(begin, length))
            if not self.language:
                self.language = await self._find_language(source)
            told = self._behind(earlier) + self._prompt()
            window = await self._write(told, source)
            if self._is_silent(window):
                begin += length
                continue
            num_heard = min(length, num_frames - begin)
            segments, step = cut(window.tokens, self._speech.timestamps.first, num_heard)
            times = await self._times(told, window, source, num_heard) if self._asked.wants_words else []
            for segment in segments:
                if piece := self._piece(segment, begin, window, times):
                    earlier += window.tokens[segment.first : segment.last]
                    yield piece
            begin += step
            if not self._asked.condition_on_previous_text or window.temperature > _FORGETS_ABOVE:
                earlier = []

    def _source(self, mel: Floats) -> Media:
        assert self._described.max_source_len is not None
        return sound_source(np.ascontiguousarray(mel), self._described.max_source_len)

    def _piece(self, segment: Segment, begin: int, window: Window, times: list[float]) -> Piece | None:
        text = self._service.tokenizer.decode(segment.tokens)
        if not text.strip():
            return None
        offset = begin / FRAMES_OF_A_SECOND
        return Piece(
            start=offset + segment.start,
            end=offset + segment.end,
            text=text,
            tokens=segment.tokens,
            words=self._words(segment, window, times, offset) if times else [],
            window=window,
            seek=begin,
        )

    # ------------------------------------------------------------------ when words are spoken

    async def _times(self, told: list[int], window: Window, source: Media, num_frames: int) -> list[float]:
        """When each token of a window begins, in seconds from its beginning, and once more the last of these."""
        num_places = num_frames // FRAMES_OF_A_STEP
        read = window.tokens[: self._turns.max_model_len - 1 - len(told)]  # the last one has had no follower
        if not read or not num_places:
            return []
        sampling = SamplingParams(max_tokens=0, seed=0, alignment=Alignment(len(told), num_places))
        (written,) = await self._turns.run([Choice(told + read, sampling, StopConditions(), source=source)])
        weights = np.frombuffer(written.vector, np.float32).reshape(-1, num_places)
        places = await asyncio.to_thread(token_places, weights)
        times = [float(place) * SECONDS_OF_A_STEP for place in places]
        return times + [times[-1]] * (1 + len(window.tokens) - len(read))

    def _words(self, segment: Segment, window: Window, times: list[float], offset: float) -> list[SpokenWord]:
        first_time = self._speech.timestamps.first
        at = [index for index in range(segment.first, segment.last) if window.tokens[index] < first_time]
        words = words_of(segment.tokens, self._service.tokenizer.decode, self.language)
        return [
            SpokenWord(word.text.strip(), offset + times[at[word.first]], offset + times[at[word.last - 1] + 1])
            for word in words
        ]

    # ------------------------------------------------------------------ what the decoder is told

    def _prompt(self) -> list[int]:
        speech = self._speech
        of_language = [speech.languages[self.language]] if speech.languages else []
        of_task = [speech.tasks[self.task]] if speech.tasks else []
        return [speech.start, *of_language, *of_task]

    def _asked_before(self) -> list[int]:
        """The client's text, as if it had been said before the first window."""
        if not self._asked.prompt:
            return []
        if self._speech.previous is None:
            raise UnsupportedError("prompt: this model takes none", "prompt")
        return self._service.tokenizer.encode(" " + self._asked.prompt.strip(), add_special_tokens=False)

    def _behind(self, earlier: list[int]) -> list[int]:
        """What stands before the prompt of a window: what was said before, or the end of that if there is no room."""
        if not earlier or self._speech.previous is None:
            return []
        return [self._speech.previous, *earlier[-(self._turns.max_model_len // 2 - 1) :]]

    async def _find_language(self, source: Media) -> str:
        """The most probable one: what the model says behind the token that begins a text."""
        codes = {token: code for code, token in self._speech.languages.items()}
        rules = TokenRules(only_first=sorted(codes))
        sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, rules=rules)
        choice = Choice([self._speech.start], sampling, StopConditions(), source=source)
        (written,) = await self._turns.run([choice])
        return codes[written.token_ids[0]]

    # ------------------------------------------------------------------ what it writes

    async def _write(self, told: list[int], source: Media) -> Window:
        """A window's text, at the lowest temperature at which it is not poor, or else at the highest."""
        asked, no_speech_prob = self._asked.temperature, 0.0
        for number, temperature in enumerate((asked,) if asked else _TEMPERATURES):
            choices = [self._text(told, source, usable_temperature(temperature))]
            if not number:
                choices.append(self._silence(told, source))
            written, *silence = await self._turns.run(choices, len(choices))
            if silence:
                no_speech_prob = math.exp(silence[0].logprobs[0])
            window = self._window(written, temperature, no_speech_prob)
            if not self._is_poor(window):
                break
        return window

    def _text(self, told: list[int], source: Media, temperature: float) -> Choice:
        rules = TokenRules(
            suppressed=sorted(self._described.suppressed),
            suppressed_first=sorted(self._described.suppressed_first),
            timestamps=self._speech.timestamps,
            in_logprobs=True,
        )
        sampling = SamplingParams(
            max_tokens=self._turns.max_model_len - len(told),
            seed=self._asked.seed,
            temperature=temperature,
            stop_token_ids=frozenset([self._speech.timestamps.end]),
            logprobs=0,
            rules=rules,
        )
        return Choice(told, sampling, StopConditions(), source=source)

    def _silence(self, told: list[int], source: Media) -> Choice:
        """Has the model say that nothing is said, and how probable that is, behind the token that begins a text."""
        rules = TokenRules(only_first=[self._speech.no_speech])
        sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, logprobs=0, rules=rules)
        until_start = told[: len(told) - len(self._prompt()) + 1]
        return Choice(until_start, sampling, StopConditions(), source=source)

    def _window(self, written: Written, temperature: float, no_speech_prob: float) -> Window:
        tokens, first, end = written.token_ids, self._speech.timestamps.first, self._speech.timestamps.end
        tokens = tokens[:-1] if tokens[-1:] == [end] else tokens
        text = self._service.tokenizer.decode([token for token in tokens if token < first]).strip().encode()
        return Window(
            tokens,
            temperature,
            avg_logprob=math.fsum(written.logprobs) / (len(tokens) + 1),
            compression_ratio=len(text) / len(zlib.compress(text)),
            no_speech_prob=no_speech_prob,
        )

    def _is_poor(self, window: Window) -> bool:
        """Whether a text had better be written again: it repeats itself, or is improbable where something is said."""
        repeats = window.compression_ratio > self._asked.compression_ratio_threshold
        return (repeats or window.avg_logprob < self._asked.logprob_threshold) and not self._is_silent(window)

    def _is_silent(self, window: Window) -> bool:
        """Whether a text was made up where nothing is said."""
        is_improbable = window.avg_logprob < self._asked.logprob_threshold
        return is_improbable and window.no_speech_prob > self._asked.no_speech_threshold


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
