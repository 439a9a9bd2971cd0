"""`paceline batch`: a file of requests in, a file of answers out."""

import json
import signal
from pathlib import Path

import pytest

from app.batch import run_batch
from app.errors import StartupError
from tests.patience import PATIENCE, wait_until
from tests.server.process import popen, run

COMMAND = ("-m", "app.cli", "batch")


def request(custom_id: str, **body: object) -> str:
    body = {"prompt": f"{custom_id} {custom_id}", "max_tokens": 8, "ignore_eos": True, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body})


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    names = [f"r{number}" for number in range(4)]  # whose answers together are shorter than a file's buffer
    slow = [request("slow", max_tokens=8000)]  # the others behind it have their answers long before
    source.write_text("\n".join([request(names[0]), *slow, *map(request, names[1:])]) + "\n")
    options = ("--worker", "echo", "--max-num-seqs", "2")
    with popen(*COMMAND, str(source), str(target), *options) as process:
        wait_until(lambda: target.exists() and target.read_bytes().count(b"\n") >= 3)  # each at once
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "paceline: stopped; the same command goes on\n" in log
    before = target.read_text().splitlines(keepends=True)
    assert not any('"slow"' in line for line in before)
    target.write_text("".join(before[:-1]) + before[-1][:20])  # as if it had been killed while it wrote
    code, output, log = run(*COMMAND, str(source), str(target), *options)
    assert (code, output) == (0, "")
    assert f"{len(before) - 1} of 5 answers are in" in log
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted([*names, "slow"])
    assert {line["response"]["status_code"] for line in lines} == {200}
    assert [json.loads(line) for line in before[:-1]] == lines[: len(before) - 1]  # those stayed as they were


def test_answers_in_the_order_of_the_requests_and_errors_among_them(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies: dict[str, dict[str, object]] = {"long": {"max_tokens": 500}, "bad": {"temperature": 9}, "short": {}}
    models = dict(zip(bodies, ("b", "a", "a"), strict=True))
    source.write_text("\n".join(request(name, model=models[name], **body) for name, body in bodies.items()))
    several = ("--model", "a=embedded", "--model", "b=embedded")
    code, _, log = run(*COMMAND, str(source), str(target), "--ordered", "--worker", "echo", *several)
    assert code == 0, log
    assert "3 answers written to" in log
    assert "1 of them errors" in log
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in lines] == [
        ("long", 200), ("bad", 400), ("short", 200)
    ]  # fmt: skip
    assert [line["response"]["body"].get("model") for line in lines] == ["b", None, "a"]
    assert "all 3 answers are in" in run_batch(source, target, is_ordered=True, model="not-even-looked-for")


def test_a_wrong_file_for_the_answers_stays_as_it_is(tmp_path: Path) -> None:
    source, other = tmp_path / "in.jsonl", tmp_path / "other"
    source.write_text(f"{request('a')}\n{request('b')}")
    with pytest.raises(StartupError, match="need a file of their own"):
        run_batch(source, tmp_path / "." / "in.jsonl", is_ordered=False)
    with pytest.raises(StartupError, match="is no file"):
        run_batch(source, Path("/dev/full"), is_ordered=False)
    for text in (source.read_text(), "anything", '{"id": 1}\n[', "[" * 100_000 + "\n"):
        other.write_text(text)
        with pytest.raises(StartupError, match=r"other, line 1: it is no answer of a batch"):
            run_batch(source, other, is_ordered=False)
        assert other.read_text() == text


def test_lines_that_are_no_requests_and_a_folder_that_is_missing_are_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(request("a"))
    with pytest.raises(StartupError, match=r"out.jsonl cannot be written: No such file or directory"):
        run_batch(source, tmp_path / "nowhere" / "out.jsonl", is_ordered=False)
    source.write_text(request("a") + "\n" + request("a") + "\nnothing\n")
    with pytest.raises(StartupError, match="line 2: custom_id: 'a' occurs twice; line 3: the line is no JSON"):
        run_batch(source, tmp_path / "out.jsonl", is_ordered=False)
