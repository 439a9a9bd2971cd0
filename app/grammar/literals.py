"""Fixed texts in grammars, some of whose parts may be tokens of their own."""

import json
import re
from collections.abc import Iterable

from ..text.tokenizer import Tokenizer


def literal(text: str, markers: Iterable[str], tokenizer: Tokenizer) -> str:
    """A text as an expression of a Lark grammar. Markers that are tokens of their own are written as <[id]>."""
    ids = {marker: id_ for marker in markers if (id_ := tokenizer.added_id(marker)) is not None}
    pieces = re.split("(" + "|".join(map(re.escape, ids)) + ")", text) if ids else [text]
    return join(*(f"<[{ids[piece]}]>" if piece in ids else json.dumps(piece) for piece in pieces if piece))


def join(*parts: str) -> str:
    """Expressions one behind the other, without the empty ones."""
    return " ".join(filter(None, parts))
