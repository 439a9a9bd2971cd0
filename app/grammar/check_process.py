"""The process in which grammars are checked: `python -m app.grammar.check_process MODEL_FOLDER`.

It answers as `app.core.answering` says. It is bound to fail where the engine would: a grammar is compiled as there, but
on a smaller stack, and with bounds on processor time and memory. Then some tokens are matched, because a part of the
work is done when it is needed.
"""

import re
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from ..core.answering import Ready, serve, take_stdout
from ..text.tokenizer import Tokenizer
from .checker import Question, Verdict
from .compiler import compile_grammar, vocabulary_of
from .constraint import GrammarError

_STACK_BYTES = 2**20
"""The engine's threads have at least twice as much."""
_MOST_CPU_SECONDS = 5
"""Processor time for one grammar."""
_MOST_BYTES = 256 * 2**20
"""Memory for one grammar."""
_NUM_TOKENS = 32
_MOST_MATCHING_SECONDS = 1.0
"""Processor time for matching these: every other stream of a step waits for its slowest mask."""
_PRIME = 7919
_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def check(vocabulary: LLTokenizer, question: Question) -> Verdict:
    """Compile a grammar, and match some tokens."""
    grammar = question.grammar.decode(errors="surrogatepass")
    try:
        if _GBNF.search(grammar):
            grammar = gbnf_to_lark(grammar)
        matcher = compile_grammar(vocabulary, grammar)
        allows_beginning = any(_allows(vocabulary, matcher, text) for text in question.beginnings)
        _match(matcher)
    except (GrammarError, ValueError, RecursionError) as error:
        return Verdict(error=str(error)[:1000])
    except MemoryError:
        return Verdict(error="it takes too much memory to compile")
    except Exception as error:  # the converter's own, for what is no GBNF
        return Verdict(error=f"{type(error).__name__}: {error}"[:1000])
    return Verdict(grammar, allows_beginning=allows_beginning)


def _allows(vocabulary: LLTokenizer, matcher: LLMatcher, text: str) -> bool:
    tokens = vocabulary.tokenize_bytes(text.encode())
    return bool(matcher.validate_tokens(tokens) == len(tokens))


def _match(matcher: LLMatcher) -> None:
    """Match tokens from all over the vocabulary, as long as there are any. Raises GrammarError if that takes long."""
    began = time.thread_time()
    for number in range(_NUM_TOKENS):
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if matcher.is_error() or matcher.is_stopped() or not len(allowed):
            return
        matcher.consume_token(int(allowed[number * _PRIME % len(allowed)]))
        if time.thread_time() - began > _MOST_MATCHING_SECONDS:
            raise GrammarError("the tokens that it allows take too long to compute")


def main() -> None:
    """Check grammars until stdin is closed."""
    answers = take_stdout()
    tokenizer = Tokenizer(Path(sys.argv[1]))
    vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)
    limits = {"most_cpu_seconds": _MOST_CPU_SECONDS, "most_bytes": _MOST_BYTES}
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(
        target=serve, args=(Ready(), Question, partial(check, vocabulary), answers), kwargs=limits
    )
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
