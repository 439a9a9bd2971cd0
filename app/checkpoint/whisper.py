"""The tokens by which Whisper is told what to do, from its generation_config.json."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.sampling import TimestampRules

_CODE = re.compile(r"<\|(\w+)\|>")


@dataclass(frozen=True)
class SpeechTokens:
    """A decoder's prompt is [previous, earlier text,] start, language, task; its text has times in it."""

    start: int
    languages: Mapping[str, int]
    """By code, such as en; none if the model knows English alone."""
    tasks: Mapping[str, int]
    """transcribe and translate; none if the model only transcribes."""
    previous: int | None
    """What stands before an earlier text."""
    no_speech: int
    """Stands in the place of a text where nothing is said."""
    timestamps: TimestampRules
    alignment_heads: tuple[tuple[int, int], ...]
    """(layer, head): those that look at what is spoken; none if the files do not say which these are."""
    median_filter_width: int
    """Over so many of the encoder's tokens what they look at is smoothed."""


def parse_speech_tokens(asked: Mapping[str, Any], start: int) -> SpeechTokens | None:
    """Of generation_config.json, or None if it names no tokens. Raises ValueError or TypeError for what makes no sense.

    asked: its content, and that of config.json.
    """
    no_timestamps, end = asked.get("no_timestamps_token_id"), asked.get("eos_token_id")
    if no_timestamps is None:
        return None
    named = asked.get("lang_to_id") or {}
    codes = {name: _CODE.fullmatch(name) for name in named}
    if type(no_timestamps) is not int or type(end) is not int or not all(codes.values()):
        raise ValueError("no_timestamps_token_id, eos_token_id or lang_to_id of generation_config.json is broken")
    most = asked.get("max_initial_timestamp_index")
    width = int(asked.get("median_filter_width", 7))
    if width < 1 or width % 2 == 0:
        raise ValueError(f"median_filter_width of config.json is {width}")
    return SpeechTokens(
        start,
        {code[1]: int(named[name]) for name, code in codes.items() if code},
        {str(name): int(token) for name, token in (asked.get("task_to_id") or {}).items()},
        asked.get("prev_sot_token_id"),
        no_timestamps - 1,
        TimestampRules(no_timestamps + 1, end, no_timestamps, None if most is None else int(most)),
        _alignment_heads(asked),
        width,
    )


def _alignment_heads(asked: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """None if they are those of a larger model, from which a smaller one was distilled and has its files."""
    heads = tuple((int(layer), int(head)) for layer, head in asked.get("alignment_heads") or ())
    sizes = int(asked.get("decoder_layers", 4)), int(asked.get("decoder_attention_heads", 6))
    are_there = all(0 <= layer < sizes[0] and 0 <= head < sizes[1] for layer, head in heads)
    return heads if are_there else ()
