"""From what a client asks outputs to look like to a grammar that the engine can follow."""

import asyncio

from app.api.schemas.common import SamplingFields
from app.api.schemas.structured import Constraint
from app.api.service import Service
from app.errors import InvalidRequestError, UnsupportedError
from app.grammar.compiler import GrammarError


async def grammar_of(service: Service, body: SamplingFields, constraint: Constraint | None) -> str:
    """The grammar that the output has to match, or "". Raises InvalidRequestError for one that cannot be compiled.

    It is compiled here only to tell so; the engine does it again. Both happen in threads that nobody else waits for.
    """
    if constraint is None:
        return ""
    field, limit = constraint.field, service.settings.max_grammar_size
    if service.settings.worker == "echo":
        raise UnsupportedError(f"{field}: the echo worker follows no grammars", field)
    if constraint.size > limit:
        raise InvalidRequestError(f"{field}: at most {limit} characters (max_grammar_size)", field)
    for name in ("min_tokens", "ignore_eos"):  # a grammar says when the text ends
        if getattr(body, name):
            raise InvalidRequestError(f"{name} and {field} exclude each other", name)
    try:
        grammar = constraint.build()
        await asyncio.wrap_future(service.grammars.start(grammar))
    except (GrammarError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{field}: {error}"[:1000], field) from error
    return grammar
