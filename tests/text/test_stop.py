"""Stop strings are found wherever the text is cut, and no part of them is sent."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.text.stop import StopChecker

SMALL = st.text(alphabet="ab.", min_size=1, max_size=4)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: the text up to the first place where it ends with a stop string, the longest of several."""
    for end in range(1, len(text) + 1):
        if hits := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(hits, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(st.lists(SMALL, max_size=4, unique=True), st.lists(st.text(alphabet="ab.c", max_size=5)), st.booleans())
@example(["bc", "abc"], ["ab", "c"], False)
@example(["aab"], ["a", "a", "a", "b"], False)
@example([".", "a."], ["a."], False)
def test_any_text_cut_anywhere(stops: list[str], cuts: list[str], include: bool) -> None:
    checker, out, hit, given_text = StopChecker(stops, include), "", None, ""
    want, want_hit = expected("".join(cuts), stops, include)
    for piece in cuts:
        given_text += piece
        safe, hit = checker.feed(piece)
        out += safe
        if hit is not None:
            break
        held = given_text[len(out) :]
        assert given_text.startswith(out)
        # Exactly what could still become a stop string is held back: no less, and no more.
        ends = [given_text[i:] for i in range(len(given_text))]
        longest = max((end for end in ends for stop in stops if stop.startswith(end)), key=len, default="")
        assert held == longest
    if hit is None:
        out += checker.flush()
    assert (out, hit) == (want, want_hit)


@pytest.mark.parametrize("char", string.punctuation)
def test_characters_that_mean_something_in_patterns(char: str) -> None:
    """Each is tested alone: in one pattern, a character that matches everything would hide the others."""
    checker = StopChecker([char + "x"], False)
    assert checker.feed("a" + char) == ("a", None)
    assert checker.feed("x") == ("", char + "x")
