"""Checks grammars before the engine sees them, in a process of its own (`app.grammar.check_process`).

The library that compiles grammars is native code: a grammar may make it crash, run for minutes or take all memory.
Then the process that checks it ends, and nothing but the request with this grammar suffers.
"""

import asyncio
import logging
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..core.own_module import FOLDER, command
from ..errors import InternalError
from .constraint import GrammarError

log = logging.getLogger(__name__)

MOST_CPU_SECONDS = 5
"""Processor time for one grammar."""
_MOST_SECONDS = 60
"""The same by the clock, for a grammar that waits, and on a machine that is busy."""
_START_SECONDS = 120
_MOST_KEPT = 64
FRAME_BYTES = 4
"""Messages between the two processes begin with their length."""


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
    """Starts the process with the first grammar, and again after it has ended. One grammar is checked at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the model whose tokens the grammars are for."""
        self._folder = folder
        self._process: Process | None = None
        self._turn = asyncio.Lock()
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
        if self._process is not None:
            await self._end(self._process)

    async def _check(self, question: Question) -> Verdict:
        async with self._turn:
            process = self._process or await self._start()
            assert process.stdin is not None
            try:
                async with asyncio.timeout(_MOST_SECONDS):
                    message = msgspec.msgpack.encode(question)
                    process.stdin.write(len(message).to_bytes(FRAME_BYTES) + message)
                    await process.stdin.drain()
                    return msgspec.msgpack.decode(await _receive(process), type=Verdict)
            except (TimeoutError, EOFError, ConnectionError):
                code = await self._end(process)
                size = len(question.grammar)
                log.warning("a grammar of %d bytes ended the process that checks grammars (%d)", size, code)
                is_slow = code in (-signal.SIGPROF, -signal.SIGKILL)
                return Verdict(error=f"it takes too {'long' if is_slow else 'much memory or stack'} to compile")

    async def _start(self) -> Process:
        process = self._process = await asyncio.create_subprocess_exec(
            *command("grammar.check_process"), str(self._folder.absolute()),
            cwd=FOLDER, stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_START_SECONDS):
                await _receive(process)  # it says when it is ready
        except (TimeoutError, EOFError) as error:
            code = await self._end(process)
            raise InternalError(f"the process that checks grammars does not start (exit code {code})") from error
        return process

    async def _end(self, process: Process) -> int:
        """Kill the process unless it has ended, and return its exit code: negative if a signal has ended it."""
        self._process = None
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            # One that died has closed its end, but may not have been waited for yet.
            try:
                async with asyncio.timeout(1):
                    return await process.wait()
            except TimeoutError:
                process.kill()
        return await process.wait()


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(FRAME_BYTES))
    return await process.stdout.readexactly(length)
