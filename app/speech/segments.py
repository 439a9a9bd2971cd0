"""What Whisper's tokens say of when a text was spoken, as openai/whisper reads them (whisper/transcribe.py)."""

from collections.abc import Sequence
from typing import NamedTuple

SECONDS_OF_A_STEP = 0.02
"""From one token for a time to the next."""
FRAMES_OF_A_STEP = 2
_LEAST_FRAMES = 100
"""By which a window is behind the one before: a second, so that there is a bound on their number."""


class Segment(NamedTuple):
    """A piece of text with its times, in seconds from where the window begins."""

    start: float
    end: float
    tokens: list[int]
    """Without those for times."""
    first: int
    """Index of its first token among those of the window, and ..."""
    last: int
    """... of the one behind its last."""


def cut(tokens: Sequence[int], first_time: int, window_frames: int) -> tuple[list[Segment], int]:
    """The segments of a window's text, and how many frames further the next window begins.

    tokens: without the one that ends the text. first_time: the token for 0.00. window_frames: as far as the sound goes.

    A text ends with a time, or two if more is spoken than it says: the next window then begins at the last one.
    """
    is_time = [token >= first_time for token in tokens]
    ends = [at for at in range(1, len(tokens)) if is_time[at] and is_time[at - 1]]
    ends_with_one = is_time[-2:] == [False, True]
    if not ends:
        times = [token - first_time for token in tokens if token >= first_time]
        steps = times[-1] if times and times[-1] > 0 else window_frames // FRAMES_OF_A_STEP
        return [_segment(tokens, 0, len(tokens), 0, steps, first_time)], window_frames
    if ends_with_one:
        ends.append(len(tokens))
    segments, begin = [], 0
    for end in ends:
        start, stop = tokens[begin] - first_time, tokens[end - 1] - first_time
        segments.append(_segment(tokens, begin, end, start, stop, first_time))
        begin = end
    if ends_with_one:
        return segments, window_frames
    return segments, max(_LEAST_FRAMES, (tokens[begin - 1] - first_time) * FRAMES_OF_A_STEP)


def _segment(tokens: Sequence[int], begin: int, end: int, start: int, stop: int, first_time: int) -> Segment:
    text = [token for token in tokens[begin:end] if token < first_time]
    return Segment(max(0, start) * SECONDS_OF_A_STEP, max(0, stop) * SECONDS_OF_A_STEP, text, begin, end)
