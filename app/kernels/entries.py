"""How kernels of layers that keep states are told which tokens of a step belong to whom.

*Entries*, (entries, 5) int32: of each request of the step the slot of its state, its first token, the one behind its
last, and, if its state is to be copied somewhere, the token before which, and the slot; else -1 and -1. An entry
without tokens is padding.

*Chunks*, (chunks, 2) int32: pieces of the entries of several tokens, which are computed at once: first token and number
of tokens, which is 0 for padding. They end where a state is copied.
"""

from collections.abc import Iterable, Sequence

ENTRY, CHUNK = 5, 64
"""Numbers of an entry, and tokens of a chunk, at most."""
CHUNK_FIELDS = 2


def most_chunks(tokens: int, entries: int) -> int:
    """Of so many entries of several tokens, which have so many together: each ends in two places with one not full."""
    return tokens // CHUNK + 2 * entries


def chunks_of(entries: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """The chunks of entries."""
    found = []
    for _, start, end, cut, copy in entries:
        turn = cut if copy >= 0 else end
        pieces = ((start, turn), (turn, end)) if end - start > 1 else ()
        found += [(at, min(CHUNK, stop - at)) for begin, stop in pieces for at in range(begin, stop, CHUNK)]
    return found
