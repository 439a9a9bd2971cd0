"""The parser finds the same events wherever their bytes are cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from paceline_bench.sse import EventParser

STREAM = (
    ": a comment\r\n\r\n"
    'data: {"text": "é😀"}\n\n'
    "event: message\r\nid: 7\r\ndata:no space\r\n\r\n"
    "data: first\ndata: second\n\n"
    "\n\nretry: 5\n\n"
    "data: [DONE]\n\ndata: never ended"
).encode()
EVENTS = ['{"text": "é😀"}'.encode(), b"no space", b"first\nsecond", b"[DONE]"]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=40).map(sorted))
def test_cut_anywhere(cuts: list[int]) -> None:
    parser = EventParser()
    borders = [0, *cuts, len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(borders)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_byte_by_byte() -> None:
    parser = EventParser()
    assert [event for i in range(len(STREAM)) for event in parser.feed(STREAM[i : i + 1])] == EVENTS
