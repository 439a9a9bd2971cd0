"""A process that answers questions, and what becomes of questions that are too much for it."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from app.core.answering import Ready
from app.core.side_process import EndedError, SideProcess
from app.errors import InternalError
from tests.patience import PATIENCE

PROGRAM = """
import os, sys
from app.core.answering import FRAME_BYTES, Ready, send, serve, take_stdout
from tests.core.test_side_process import Answer, Question

def answer(question):
    print("a warning", flush=True)
    os.write(1, b"what native code says")
    match question.text:
        case "takes long":
            while True:
                pass
        case "takes memory":
            bytearray(2**30)
        case "cannot be read":
            os.write(answers, (1).to_bytes(FRAME_BYTES) + b"\\xc1")
            os._exit(0)
    return Answer(question.text + "!", os.getpid())

answers = take_stdout()
if sys.argv[1:]:
    send(Ready(sys.argv[1]), answers)
else:
    serve(Ready(), Question, answer, answers, most_cpu_seconds=0.2, most_bytes=2**28)
"""


class Question(msgspec.Struct):
    text: str


class Answer(msgspec.Struct):
    text: str
    pid: int


def side_process(*arguments: str) -> SideProcess[Ready, Answer]:
    return SideProcess("the process of this test", (sys.executable, "-c", PROGRAM, *arguments), Ready, Answer)


@pytest_asyncio.fixture
async def process() -> AsyncIterator[SideProcess[Ready, Answer]]:
    process = side_process()
    async with asyncio.timeout(PATIENCE):
        yield process
    await process.close()


@pytest.mark.slow
async def test_answers_are_those_to_the_own_question(process: SideProcess[Ready, Answer]) -> None:
    texts = ["a", "b" * 2**20, ""]
    answers = await asyncio.gather(*(process.ask(Question(text)) for text in texts))
    assert [answer.text for answer in answers] == [f"{text}!" for text in texts]
    (pid,) = {answer.pid for answer in answers}
    os.kill(pid, signal.SIGSTOP)
    slow = asyncio.create_task(process.ask(Question("slow")))
    await asyncio.sleep(0)  # it waits for its answer now
    assert await process.ready() == Ready(), "what is known need not wait for an answer"
    assert not slow.done()
    os.kill(pid, signal.SIGCONT)
    assert (await slow).text == "slow!"


@pytest.mark.slow
async def test_what_is_cancelled_leaves_no_answer_to_others(
    process: SideProcess[Ready, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, has_begun = asyncio.create_subprocess_exec, asyncio.Event()

    async def begin(*program: str, **options: Any) -> Process:
        process = await start(*program, **options)
        has_begun.set()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
    starting = asyncio.create_task(process.ready())
    await has_begun.wait()
    await cancel(starting)
    pid = (await process.ask(Question("a"))).pid
    os.kill(pid, signal.SIGSTOP)
    asking = asyncio.create_task(process.ask(Question("b")))
    await asyncio.sleep(0)  # it waits for its answer now
    await cancel(asking)
    assert (await process.ask(Question("c"))).text == "c!"


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.slow
async def test_a_question_that_is_too_much_ends_the_process_and_the_next_one_is_answered(
    process: SideProcess[Ready, Answer],
) -> None:
    for text, was_slow in (("takes long", True), ("takes memory", False)):
        with pytest.raises(EndedError) as end:
            await process.ask(Question(text))
        assert end.value.was_slow is was_slow
    with pytest.raises(InternalError, match="the process of this test has given no answer that can be read"):
        await process.ask(Question("cannot be read"))
    pid = (await process.ask(Question("a"))).pid
    os.kill(pid, signal.SIGKILL)  # as the kernel does it where memory is short
    while (again := await ask_again(process)) is None:
        pass
    assert again.pid != pid


async def ask_again(process: SideProcess[Ready, Answer]) -> Answer | None:
    """None as long as the process's death has not been noticed."""
    try:
        return await process.ask(Question("a"))
    except EndedError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (side_process("the model is broken"), "the process of this test cannot: the model is broken"),
        (SideProcess("it", ("/bin/false",), Ready, Answer), "it cannot: it does not start"),
    ],
)
async def test_a_process_that_cannot_start_says_why(process: SideProcess[Ready, Answer], reason: str) -> None:
    for act in (process.ready, lambda: process.ask(Question("a"))):
        with pytest.raises(InternalError, match=re.escape(reason)):
            await act()
