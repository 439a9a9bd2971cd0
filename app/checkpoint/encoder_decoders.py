"""What the files of an encoder-decoder say: how much its two parts read, and how its texts begin and go on.

Without torch: the API and the worker both read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.sampling import TokenRules
from ..core.wire import Task
from .chronos import SeriesTokens, parse_series_tokens
from .whisper import SpeechTokens, parse_speech_tokens

RELATIVE = frozenset(("t5", "mt5", "umt5"))
"""transformers' model types whose tokens know only how far they are from others: no table bounds a text's length."""
_WITH_TABLES = frozenset(("bart", "mbart", "pegasus", "marian", "m2m_100", "plbart"))
SPEECH = frozenset(("whisper",))
"""Those whose encoders read sound."""
ENCODER_DECODERS = RELATIVE | _WITH_TABLES | SPEECH

_FRAMES_OF_A_TOKEN = 2
"""Whisper's encoder makes one token of two frames of a spectrogram."""
_REFUSED: dict[str, tuple[Any, ...]] = {
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "exponential_decay_length_penalty": (),
    "forced_decoder_ids": (),
    "guidance_scale": (1, 1.0),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "remove_invalid_values": (False,),
    "sequence_bias": (),
}
"""Keys of generation_config.json that change a text and are not supported, and their values that do nothing."""


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """A model whose encoder reads an input as a whole, and whose decoder writes a text about it."""

    model_type: str
    max_source_len: int | None
    """Most tokens that the encoder reads, or makes of a sound; None if any number."""
    max_target_len: int | None
    """Most tokens of the decoder."""
    beginning: tuple[int, ...] = ()
    """Tokens that every text of the decoder begins with."""
    suppressed: frozenset[int] = frozenset()
    """Tokens that are never generated."""
    suppressed_first: frozenset[int] = frozenset()
    """Tokens that are not generated as the first one."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are never generated."""
    no_repeat: int = 0
    """No sequence of so many tokens comes twice in a text; 0 is off."""
    min_tokens: int = 0
    """At least so many tokens are generated."""
    num_beams: int = 1
    """Of the search that the model's makers have used. Paceline does not search."""
    num_mel_bins: int = 0
    """Of a spectrogram that the encoder reads."""
    speech: SpeechTokens | None = None
    """How a model that reads sound is told what to do; None if its files do not say."""
    series: SeriesTokens | None = None
    """Which numbers the tokens of a model stand for that reads and writes these; None for all others."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do."""
        if self.hears:
            return ("transcribe",)
        return ("generate",) if self.series is None else ("forecast",)

    @property
    def hears(self) -> bool:
        """Whether the encoder reads sound."""
        return self.model_type in SPEECH

    @property
    def rules(self) -> TokenRules | None:
        """What its files forbid its texts; None if nothing."""
        rules = TokenRules(
            suppressed=sorted(self.suppressed),
            suppressed_first=sorted(self.suppressed_first),
            banned=[list(tokens) for tokens in self.banned],
            no_repeat=self.no_repeat,
        )
        return None if rules == TokenRules() else rules

    @property
    def num_frames(self) -> int:
        """Of a spectrogram that the encoder reads."""
        assert self.max_source_len is not None
        return self.max_source_len * _FRAMES_OF_A_TOKEN


def parse_encoder_decoder_config(read: Callable[[str], Any]) -> EncoderDecoderConfig | None:
    """Of a folder whose JSON files `read` gives; None for a model that is no encoder-decoder with text as its output.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is not supported.
    """
    config = read("config.json") or {}
    names = config.get("architectures")
    if not config.get("is_encoder_decoder") or not isinstance(names, list) or not names:
        return None
    kind, architecture = str(config.get("model_type")), str(names[0])
    if not architecture.endswith(("ForConditionalGeneration", "MTModel", "LMHeadModel")):
        return None  # half of such a model, or one with another head
    if kind not in ENCODER_DECODERS:
        raise ValueError(f"{kind} is an encoder-decoder model, of which these are supported: {_listed()}")
    # What generation_config.json does not say may stand in config.json, where older files have it.
    asked = {name: value for name, value in config.items() if value is not None} | {
        name: value for name, value in (read("generation_config.json") or {}).items() if value is not None
    }
    if kind in SPEECH:
        asked.pop("forced_decoder_ids", None)  # of a task and a language, which a request names
    _refuse(asked)
    if config.get("decoder_vocab_size", config.get("vocab_size")) != config.get("vocab_size"):
        raise ValueError("decoder_vocab_size: another vocabulary for the decoder is not supported")
    start = asked.get("decoder_start_token_id")
    if type(start) is not int:
        raise ValueError(f"decoder_start_token_id is {start!r}")
    forced = [] if kind in SPEECH else _tokens(asked, "forced_bos_token_id")
    series = parse_series_tokens(config)
    suppressed = {*_tokens(asked, "suppress_tokens"), *([series.end] if series else [])}  # a path has a length
    source, target = _lengths(kind, config, series)
    return EncoderDecoderConfig(
        kind,
        source,
        target,
        (start, *forced),
        frozenset(suppressed),
        frozenset(_tokens(asked, "begin_suppress_tokens")),
        tuple(tuple(map(int, words)) for words in asked.get("bad_words_ids") or ()),
        int(asked.get("no_repeat_ngram_size") or 0),
        _min_tokens(asked, 1 + len(forced)),
        int(asked.get("num_beams") or 1),
        int(config.get("num_mel_bins", 80)) if kind in SPEECH else 0,
        parse_speech_tokens(asked, start) if kind in SPEECH else None,
        series,
    )


def _listed() -> str:
    return ", ".join(sorted(ENCODER_DECODERS))


def _lengths(kind: str, config: Mapping[str, Any], series: SeriesTokens | None) -> tuple[int | None, int | None]:
    """Most tokens of the encoder and of the decoder."""
    if series is not None:
        return series.context + series.ends, 1 + series.horizon
    if kind in RELATIVE:
        return None, None
    if kind in SPEECH:
        return int(config.get("max_source_positions", 1500)), int(config.get("max_target_positions", 448))
    length = int(config.get("max_position_embeddings", 1024))
    return length, length


def _tokens(asked: Mapping[str, Any], name: str) -> list[int]:
    """One token id, or several, of which there may be none."""
    value = asked.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
        raise ValueError(f"{name} is {value!r}")
    return [id_ for id_ in ids if id_ >= 0]


def _min_tokens(asked: Mapping[str, Any], num_first: int) -> int:
    """transformers' `min_length` counts the tokens that a text begins with, but for one that is forced."""
    of_all = int(asked.get("min_length") or 0) - num_first
    return max(0, of_all, int(asked.get("min_new_tokens") or 0) - (num_first - 1))


def _refuse(asked: Mapping[str, Any]) -> None:
    for name, harmless in _REFUSED.items():
        value = asked.get(name)
        if value is not None and value not in harmless:
            raise ValueError(f"{name} of generation_config.json is {value!r}, which is not supported")
