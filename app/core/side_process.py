"""A process of our own that answers questions about what strangers send, as `app.core.answering` does.

What it reads may make it crash, run for minutes or take all memory. Then it ends, and nothing but the request suffers.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

from ..errors import InternalError
from .answering import FRAME_BYTES, Ready, framed
from .own_module import FOLDER

_MOST_SECONDS = 60
"""For one answer, by the clock: for a question that waits, and on a machine that is busy."""
_START_SECONDS = 120
First = TypeVar("First", bound=Ready)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class EndedError(Exception):
    """A question has ended the process."""

    def __init__(self, code: int) -> None:
        """`code`: the process's exit code, negative if a signal has ended it."""
        super().__init__(code)
        self.code = code
        self.was_slow = code in (-signal.SIGPROF, -signal.SIGKILL)
        """Whether it took too long, rather than too much memory."""


class SideProcess(Generic[First, Answer]):
    """Starts the process when it is first needed, and again after it has ended. It answers one question at a time."""

    def __init__(
        self, name: str, program: Sequence[str], first: type[First], answer: type[Answer], **environment: str
    ) -> None:
        """`name` is for people, such as "the process that checks grammars"; `program` is run in this package's folder.

        first: what the process says when it is ready. answer: to each question.
        """
        self._name = name
        self._program = program
        self._first = first
        self._answer = answer
        self._environment = environment
        self._process: Process | None = None
        self._killed: set[Process] = set()
        """That may not have ended yet."""
        self._ready: First | None = None
        """What the process has said of itself, which does not change when there is another."""
        self._turn = asyncio.Lock()

    async def ready(self) -> First:
        """What the process says of itself, once it is there. Raises InternalError if it does not start."""
        if self._ready is None:
            async with self._turn:
                await self._running()
        assert self._ready is not None
        return self._ready

    async def ask(self, question: msgspec.Struct) -> Answer:
        """The answer to a question. If this is cancelled, the process ends.

        Raises EndedError if the question ends the process, and InternalError if the process does not start, or gives
        no answer that can be read.
        """
        async with self._turn:
            process = await self._running()
            assert process.stdin is not None
            try:
                async with asyncio.timeout(_MOST_SECONDS):
                    process.stdin.write(framed(question))
                    await process.stdin.drain()
                    return msgspec.msgpack.decode(await _receive(process), type=self._answer)
            except msgspec.DecodeError:  # and the next answer might be that to another question
                await self._end(process)
                raise InternalError(f"{self._name} has given no answer that can be read") from None
            except (TimeoutError, EOFError, ConnectionError):
                raise EndedError(await self._end(process)) from None
            except asyncio.CancelledError:  # or the next question would have this answer
                self._give_up(process)
                raise

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._end(self._process)
        await asyncio.gather(*(process.wait() for process in self._killed))

    async def _running(self) -> Process:
        """The process: a new one if there is none, or if it has been killed."""
        if self._process is None or self._process.returncode is not None:
            return await self._start()
        return self._process

    async def _start(self) -> Process:
        process = self._process = await asyncio.create_subprocess_exec(
            *self._program, cwd=FOLDER, env={**os.environ, **self._environment}, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        said, fault = self._first(), "it does not start"
        try:
            async with asyncio.timeout(_START_SECONDS):
                said = msgspec.msgpack.decode(await _receive(process), type=self._first)
                fault = said.error
        except (TimeoutError, EOFError, msgspec.DecodeError):
            pass
        except asyncio.CancelledError:  # or the first question would have what it says here for its answer
            self._give_up(process)
            raise
        if fault:
            await self._end(process)
            raise InternalError(f"{self._name} cannot: {fault}")
        self._ready = said
        return process

    def _give_up(self, process: Process) -> None:
        """Kill the process without a wait for its end."""
        self._process = None
        self._killed = {other for other in self._killed if other.returncode is None} | {process}
        with suppress(ProcessLookupError):
            process.kill()

    async def _end(self, process: Process) -> int:
        """Kill the process unless it has ended, and return its exit code: negative if a signal has ended it."""
        self._process = None
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):  # one that died has closed its end, but may not have been waited for yet
            async with asyncio.timeout(1):
                return await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(FRAME_BYTES))
    return await process.stdout.readexactly(length)
