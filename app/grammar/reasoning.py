"""What a model thinks before it writes what a grammar wants."""

import json

from app.text.reasoning import CLOSE, OPEN
from app.text.tokenizer import Tokenizer


def thoughts(tokenizer: Tokenizer, is_open: bool) -> tuple[str, list[str]]:
    """An expression of a Lark grammar, to stand before the answer, and the rules that it needs.

    If the prompt has opened the reasoning (`is_open`), the model has to come to its end; else it may reason or not.
    """
    opening, closing = tokenizer.added_id(OPEN), tokenizer.added_id(CLOSE)
    if closing is None:
        rules = ["thoughts: thought /\\n{0,2}/", f"thought[suffix={json.dumps(CLOSE)}]: /(?s:.*)/"]
    else:
        rules = [f"thoughts: THOUGHT <[{closing}]> /\\n{{0,2}}/"]
        rules += ["THOUGHT: /(?s:.*)/ & ~/(?s:.*)" + CLOSE.replace("/", "\\/") + "(?s:.*)/"]
    if is_open:
        return "thoughts", rules
    begin = json.dumps(OPEN) if opening is None else f"<[{opening}]>"
    return f"({begin} thoughts)?", rules
