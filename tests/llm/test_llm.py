"""`LLM` and `AsyncLLM` with real engines, in scripts, threads and event loops."""

import asyncio
import os
import re
import signal
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from app import LLM, AsyncLLM, SamplingParams, own_engine
from app.errors import EngineUnavailableError, InvalidRequestError, StartupError, UnsupportedError
from app.llm.llm import _Pieces
from tests.patience import PATIENCE, wait_until
from tests.server.process import popen, run

CHAT = [{"role": "user", "content": "Name three fruits."}]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(str(tiny_model), dtype="float32", quantization="none", max_model_len=2048) as running:
        yield running


def greedy(folder: Path, token_ids: list[int], count: int) -> list[int]:
    """What transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    return model.generate(torch.tensor([token_ids]), **options)[0, len(token_ids) :].tolist()


def test_tokens_are_those_of_transformers_in_the_order_of_the_prompts(llm: LLM, tiny_model: Path) -> None:
    prompts = ["The sky is", "One, two, three", [5, 6, 7, 8]]
    results = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12), ignore_eos=True, logprobs=2)
    assert [result.prompt for result in results] == prompts
    for result in results:
        assert result.token_ids == greedy(tiny_model, result.prompt_token_ids, 12)
        assert [next(iter(logprobs)) for logprobs in result.logprobs or []] == result.token_ids
        assert (result.finish_reason, result.timings.predicted_n) == ("length", 12)
        assert result.timings.prompt_n + result.timings.cache_n == len(result.prompt_token_ids)


def test_a_stream_is_the_whole_answer(llm: LLM) -> None:
    (whole,) = llm.chat(CHAT, temperature=0, max_tokens=20, n=2, seed=1)
    pieces = list(llm.stream_chat(CHAT, temperature=0, max_tokens=20, n=2, seed=1))
    for output in whole.outputs:
        own = [piece for piece in pieces if piece.index == output.index]
        assert "".join(piece.text for piece in own) == output.text
        assert [token for piece in own for token in piece.token_ids] == output.token_ids
        assert own[-1].output == output
    assert [piece.timings is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_what_is_wrong_is_named(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="temprature"):
        llm.generate("Hi", temprature=0)
    with pytest.raises(InvalidRequestError) as raised:
        llm.chat([CHAT, [{"role": "nobody", "content": ""}]])
    assert raised.value.param == "messages[1][0].role"
    with pytest.raises(InvalidRequestError, match=r"^prompts\[1\]: This model's maximum context length") as raised:
        llm.generate((text for text in ("Hi", "a " * 3000)), max_tokens=1)
    assert raised.value.param == "prompts[1]"
    for call, wrong, name in ((llm.generate, None, "prompts"), (llm.chat, 5, "messages"), (llm.embed, {}, "texts")):
        with pytest.raises(InvalidRequestError, match=f"^{name}: ") as raised:
            call(wrong)
        assert raised.value.param == name
    with pytest.raises(UnsupportedError, match="echo"):
        llm.generate("Hi", echo=True)
    with pytest.raises(UnsupportedError, match="generates text"):  # of the endpoint for encoders
        llm.embed("Hi")


def test_a_fork_is_told_that_the_model_is_not_its_own(llm: LLM) -> None:
    with warnings.catch_warnings(action="ignore"):  # of forks and threads
        child = os.fork()
    if not child:
        try:
            llm.generate("Hi")
        except EngineUnavailableError as error:
            os._exit(7 if "another process" in error.message else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads_share_the_engine_and_more_prompts_than_it_takes_wait() -> None:
    with LLM(worker="echo", max_num_seqs=2, max_queue=0) as llm:
        texts: dict[int, list[str]] = {}

        def ask(index: int) -> None:
            prompts = [f"{index} {number}." for number in range(20)]
            texts[index] = [result.text[: len(prompts[0])] for result in llm.generate(prompts, max_tokens=16)]

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        alone = [llm.generate(f"1 {number}.", max_tokens=16)[0].text[:4] for number in range(20)]
    assert texts[1] == alone
    assert len(texts[0]) == 20


async def test_a_stream_is_closed_behind_the_piece_that_was_cancelled() -> None:
    told = []

    async def endless() -> AsyncGenerator[Any, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            for number in range(3):  # to end takes a while
                await asyncio.sleep(0)
                told.append(number)

    pieces = _Pieces(endless())
    assert await pieces.next() == 1
    waiting = asyncio.create_task(pieces.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    await pieces.close()  # no "asynchronous generator is already running"
    assert told == [0, 1, 2]


async def test_both_run_inside_of_an_event_loop() -> None:
    with LLM(worker="echo") as llm:
        (expected,) = llm.chat(CHAT, max_tokens=8)
    async with AsyncLLM(worker="echo") as other:
        results = await asyncio.gather(*(other.chat(CHAT, max_tokens=8) for _ in range(3)))
        assert [result.text for (result,) in results] == [expected.text] * 3
        assert "".join([piece.text async for piece in other.stream_chat(CHAT, max_tokens=8)]) == expected.text
        stream = other.stream("again", max_tokens=4000, ignore_eos=True)
        assert (await anext(stream)).token_ids
        await stream.aclose()
        endless = asyncio.create_task(other.generate("again", max_tokens=8000, ignore_eos=True))
        await asyncio.sleep(0)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        service = other._calls.service  # type: ignore[union-attr]
        while service.engine._open:  # type: ignore[attr-defined]  # nothing goes on behind the caller's back
            await asyncio.sleep(0.01)


def test_an_engine_that_is_gone_for_good_is_an_error() -> None:
    others = psutil.Process().children()
    with LLM(worker="echo", max_restarts=0, log_level="error") as llm:
        (engine,) = set(psutil.Process().children()) - set(others)
        engine.kill()
        wait_until(lambda: llm._calls.service.engine.failure)
        with pytest.raises(EngineUnavailableError, match="exit code -9"):
            llm.generate("Hi", max_tokens=1)
    with pytest.raises(EngineUnavailableError, match="closed"):
        llm.generate("Hi", max_tokens=1)


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="max_mode_len"):
        LLM(max_mode_len=3)
    with pytest.raises(StartupError, match=r"config\.json"):
        LLM(str(tmp_path))
    with pytest.raises(StartupError, match="block"):
        LLM(worker="echo", num_kv_blocks=2, kv_cache_memory="1GiB", log_level="error", max_model_len=100)


SCRIPT = """
from app import LLM

llm = LLM(worker="echo")
print("ready", flush=True)
try:
    for piece in llm.stream("again", max_tokens=8000, ignore_eos=True):
        print(end=".", flush=True)
        llm.generate("again and again", max_tokens=8000, ignore_eos=True, n=64)
except KeyboardInterrupt:
    print("interrupted")
print(len(llm.generate("again", max_tokens=3)[0].token_ids))
"""


def _blocks(process_id: int, number: signal.Signals) -> bool:
    """Whether a process is deaf to a signal, from its first moment on."""
    status = Path(f"/proc/{process_id}/status").read_text()
    (mask,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_ctrl_c_ends_a_call_and_a_script_needs_no_guard_and_leaves_nothing_behind() -> None:
    with popen("-c", SCRIPT, pipes={"stdout": -1, "stderr": -1}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.read(1) == "."
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        assert all(_blocks(child.pid, signal.SIGINT) for child in children)  # a terminal sends it to all of them
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=PATIENCE)
    assert (process.returncode, log) == (0, "")
    assert output.endswith("interrupted\n3\n")
    assert psutil.wait_procs(children, PATIENCE)[1] == []


async def test_nothing_waits_for_a_model_whose_start_was_broken_off() -> None:
    """As by Ctrl-C. What still waits would be told of the end later, and its error would be nobody's."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait_until_ready() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    client, engine = (
        cast(Any, SimpleNamespace(**one)) for one in ({"wait_until_ready": wait_until_ready}, {"check": int})
    )
    waiting = asyncio.create_task(own_engine._wait_until_ready(client, engine))
    await begun.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert ended.is_set()


def test_importing_the_package_is_cheap() -> None:
    """Nothing is imported before it is used: neither what HTTP needs nor what models need."""
    code, output, log = run("-X", "importtime", "-c", "import app; print(app.__version__)")
    assert code == 0
    assert {line.split("|")[2].strip() for line in log.splitlines()[1:]}.isdisjoint({"pydantic", "numpy", "torch"})
    assert output
