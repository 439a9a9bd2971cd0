"""Stop strings in a text that comes in pieces."""

import re


class StopChecker:
    """Finds the first stop string, and never lets out text that could be the beginning of one."""

    def __init__(self, stop: list[str], include_in_output: bool) -> None:
        """`stop` holds no empty string."""
        self._stop = stop
        self._include = include_in_output
        self._held = ""
        # Most pieces hold no character that begins a stop string: this tells them apart in a fraction of a microsecond.
        self._may_begin = re.compile("|".join(sorted({re.escape(text[0]) for text in stop}))).search

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to send, and the stop string if one was completed. Nothing follows after that."""
        if not self._stop or (not self._held and self._may_begin(text) is None):
            return text, None
        self._held += text
        # The one that is complete first wins, wherever the text is cut; of two that end together, the longer.
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
        """What was held back in vain; call it when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
