"""Finds stop strings in a text that arrives in pieces."""

import re


class StopChecker:
    """Finds the first stop string. Text that may be the beginning of one is held back."""

    def __init__(self, stop: list[str], include_in_output: bool) -> None:
        """`stop` contains no empty string."""
        self._stop = stop
        self._include = include_in_output
        self._held = ""
        # Most pieces have no character that begins a stop string. This finds that out in a fraction of a microsecond.
        self._may_begin = re.compile("|".join(sorted({re.escape(text[0]) for text in stop}))).search

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to send, and the stop string if one is complete, after which no text follows."""
        if not self._stop or (not self._held and self._may_begin(text) is None):
            return text, None
        self._held += text
        # The string that ends first wins, however the text is cut; of two that end together, the longer one.
        found = [(self._held.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            end, _, stop = min(found)
            safe = self._held[: end if self._include else end - len(stop)]
            self._held = ""
            return safe, stop
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        safe = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return safe, None

    def flush(self) -> str:
        """The text that is still held back. To be called when the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
