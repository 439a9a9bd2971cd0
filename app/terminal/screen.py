"""Shows an answer on the terminal while it comes, as Markdown.

Finished blocks of the text are printed once and for all, and only the last one is drawn again as it grows. So what has
scrolled away is never drawn twice, however long the answer is.
"""

import re
import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from .sources import Delta

_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tabs and newlines."""
_REFRESHES = 12
"""A second."""


class AnswerOnScreen:
    """An answer that is coming. Inside of `with`, it is on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=_REFRESHES, transient=True, vertical_overflow="ellipsis")
        self._reasoning = _Growing()
        self._text = _Growing()
        self._began_at = time.monotonic()
        self._first_at = self._last_at = 0.0
        self._num_tokens = 0

    @property
    def text(self) -> str:
        """The answer so far, without reasoning."""
        return self._text.all

    def take(self, delta: Delta) -> None:
        """Show what is new."""
        self._num_tokens += delta.num_tokens
        if delta.text or delta.reasoning:
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at
        self._reasoning.all += delta.reasoning
        self._text.all += delta.text
        if self._text.all:
            self._print(_thought(self._reasoning.rest()))
        self._print(_thought(self._reasoning.finished()))
        self._print(_markdown(self._text.finished()))
        self._live.update(_markdown(self._text.unfinished) or _thought(self._reasoning.unfinished) or "")

    def _print(self, what: RenderableType | None) -> None:
        if what is not None:
            self._live.update("", refresh=True)
            self._console.print(what)

    def speed(self) -> str:
        """A line about how fast the answer has come; empty if there was none."""
        if not self._first_at:
            return ""
        seconds, later = self._last_at - self._first_at, self._num_tokens - 1
        rate = f", {later / seconds:.1f} tokens/s" if later > 0 and seconds > 0 else ""
        return f"{self._num_tokens} tokens{rate}, the first after {self._first_at - self._began_at:.2f} s"

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print(_thought(self._reasoning.rest()))
        self._print(_markdown(self._text.rest()))
        self._live.stop()


class _Growing:
    """A text of which the beginning is printed already."""

    def __init__(self) -> None:
        self.all = ""
        self._num_printed = 0

    @property
    def unfinished(self) -> str:
        return self.all[self._num_printed :]

    def finished(self) -> str:
        """The blocks that have been finished since the last call: whatever comes, they stay what they are."""
        return self._take(_end_of_blocks(self.unfinished))

    def rest(self) -> str:
        """All that is not printed yet."""
        return self._take(len(self.unfinished))

    def _take(self, length: int) -> str:
        taken = self.unfinished[:length]
        self._num_printed += length
        return taken


def _end_of_blocks(text: str) -> int:
    """Where the last block of Markdown begins: behind an empty line that is not inside of a fence."""
    end = len(text)
    while (end := text.rfind("\n\n", 0, end)) > 0:
        if len(_FENCE.findall(text[:end])) % 2 == 0:
            return end + 2
    return 0


def harmless(text: str) -> str:
    """A text without what a terminal obeys: it could set the title, or write the clipboard."""
    return _CONTROL.sub("", text)


def _markdown(text: str) -> Markdown | None:
    return Markdown(harmless(text)) if text.strip() else None


def _thought(text: str) -> Text | None:
    return Text(harmless(text.strip()), style="dim italic") if text.strip() else None
