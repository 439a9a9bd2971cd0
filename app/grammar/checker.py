"""Checks grammars before the engine sees them, in a process of its own (`app.grammar.check_process`).

The library that compiles grammars is native code: a grammar may make it crash, run for minutes or take all memory.
Then the process that checks it ends, and nothing but the request with this grammar suffers.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..core.answering import Ready
from ..core.own_module import command
from ..core.side_process import EndedError, SideProcess
from ..errors import InternalError
from .constraint import GrammarError

log = logging.getLogger(__name__)

_MOST_KEPT = 64


class Question(msgspec.Struct, frozen=True):
    """What is to be checked."""

    grammar: bytes
    """In UTF-8, in which halves of surrogate pairs are let through."""
    beginnings: tuple[str, ...] = ()


class Verdict(msgspec.Struct):
    """What came of a check."""

    grammar: str = ""
    """The grammar as the engine is to compile it."""
    error: str = ""
    """Why it cannot; empty if it can."""
    allows_beginning: bool = False
    """Whether a text of the grammar may begin with one of the question's beginnings."""


class GrammarChecker:
    """Remembers what came of the last grammars. One grammar is checked at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the model whose tokens the grammars are for."""
        program = (*command("grammar.check_process"), str(folder.absolute()))
        self._process = SideProcess("the process that checks grammars", program, Ready, Verdict)
        self._checks: OrderedDict[Question, asyncio.Task[Verdict]] = OrderedDict()

    async def check(self, grammar: str) -> str:
        """The grammar as the engine is to compile it. Raises GrammarError if it cannot be compiled safely."""
        return (await self._verdict(grammar)).grammar

    async def allows_beginning(self, grammar: str, beginnings: Iterable[str]) -> bool:
        """Whether a text of the grammar may begin with one of these. Raises GrammarError as `check` does."""
        return (await self._verdict(grammar, *beginnings)).allows_beginning

    async def _verdict(self, grammar: str, *beginnings: str) -> Verdict:
        question = Question(grammar.encode(errors="surrogatepass"), beginnings)
        check = self._checks.get(question)
        if check is None:
            check = self._checks[question] = asyncio.create_task(self._check(question))
            while len(self._checks) > _MOST_KEPT:
                self._checks.popitem(last=False)
        self._checks.move_to_end(question)
        try:
            verdict = await asyncio.shield(check)  # others may wait for it, too
        except InternalError:
            self._checks.pop(question, None)
            raise
        if verdict.error:
            raise GrammarError(verdict.error)
        return verdict

    async def close(self) -> None:
        """End the process."""
        for check in self._checks.values():
            check.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)
        await self._process.close()

    async def _check(self, question: Question) -> Verdict:
        try:
            return await self._process.ask(question)
        except EndedError as end:
            size = len(question.grammar)
            log.warning("a grammar of %d bytes ended the process that checks grammars (%d)", size, end.code)
            return Verdict(error=f"it takes too {'long' if end.was_slow else 'much memory or stack'} to compile")
