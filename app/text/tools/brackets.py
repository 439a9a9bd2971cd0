"""Finds the end of an object or a list in a text that still arrives."""

import re
from typing import NamedTuple


class Syntax(NamedTuple):
    """The brackets and quotes of a language."""

    quotes: str
    opening: str
    closing: str
    foreign: re.Pattern[str] | None
    """Characters that cannot stand outside of strings. They show early that a text is something else. Otherwise it
    would be held back to its end, and read again from each place where an object may begin."""


JSON = Syntax('"', "{[", "}]", re.compile(r"[^{}\[\]:,\-+.0-9aeEflnrstu\s]"))
LENIENT_JSON = JSON._replace(foreign=None)
PYTHON = Syntax("\"'", "([{", ")]}", re.compile(r"[^\w.,=:()\[\]{}\-+\s]"))


class BracketScanner:
    """Follows brackets and strings, reading each character once."""

    def __init__(self, syntax: Syntax, depth: int = 0) -> None:
        """`depth`: the number of brackets that are already open."""
        self._syntax = syntax
        self._depth = depth
        self._at = 0
        self._quote = ""
        self._is_escaped = False
        self.is_broken = False
        """Whether the text turned out to be something else, so that no end can follow."""

    def end_in(self, text: str) -> int | None:
        """The position behind the end; None if it is not in `text`, whose beginning was read by earlier calls."""
        while self._at < len(text) and not self.is_broken:
            char = text[self._at]
            self._at += 1
            if self._quote:
                self._in_string(char)
            elif char in self._syntax.quotes:
                self._quote = char
            elif char in self._syntax.opening:
                self._depth += 1
            elif char in self._syntax.closing:
                self._depth -= 1
                if self._depth == 0:
                    return self._at
            elif self._syntax.foreign is not None and self._syntax.foreign.match(char):
                self.is_broken = True
        return None

    def _in_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == self._quote:
            self._quote = ""

    def forget(self) -> None:
        """Expect a text that follows the one before, instead of one that begins with it."""
        self._at = 0
