"""Reasoning in front of output that a grammar constrains."""

import json
import re

from ..text.reasoning import ReasoningTags
from ..text.tokenizer import Tokenizer


def reasoning_prefix(tokenizer: Tokenizer, tags: ReasoningTags, is_open: bool) -> tuple[str, list[str]]:
    """An expression of a Lark grammar that matches reasoning in front of the answer, and the rules that it needs.

    If the prompt has opened the reasoning (`is_open`), the model has to close it; otherwise reasoning is optional.
    """
    opening, closing = map(tokenizer.added_id, tags)
    if closing is None:
        rules = ["reasoning: thought /\\n{0,2}/", f"thought[suffix={json.dumps(tags.close)}]: /(?s:.*)/"]
    else:
        rules = [f"reasoning: THOUGHT <[{closing}]> /\\n{{0,2}}/"]
        rules += ["THOUGHT: /(?s:.*)/ & ~/(?s:.*)" + re.escape(tags.close).replace("/", "\\/") + "(?s:.*)/"]
    if is_open:
        return "reasoning", rules
    begin = json.dumps(tags.open) if opening is None else f"<[{opening}]>"
    return f"({begin} reasoning)?", rules
