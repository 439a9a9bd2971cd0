"""Prompts that are kept for distillation."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.edge.kept_prompts import KeptPrompts
from app.distill.prompts import PromptReader
from app.errors import StartupError
from app.settings import load_settings
from tests.api.conftest import Server, start_server, write_tokenizer


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Server]:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").touch(0o644)
    yield from start_server(tmp_path, keep_prompts=tmp_path / "prompts.jsonl")


def test_each_prompt_is_kept_once_as_the_model_got_it(keeping: Server, tmp_path: Path) -> None:
    keeping.complete(prompt=["Hi", "Hi!"], n=2)
    messages = [{"role": "user", "content": "Hi"}]
    assert keeping.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).status_code == 200
    assert keeping.post("/v1/chat/completions", {"messages": []}).status_code == 400
    file = tmp_path / "prompts.jsonl"
    first, second, chat = (json.loads(line)["token_ids"] for line in file.read_text().splitlines())
    service = keeping.service
    assert (first, second) == (list(b"Hi"), list(b"Hi!"))
    assert chat == service.tokenizer.encode_segments(service.chat_template.render(messages))
    assert list(PromptReader(tmp_path).read(file, 99).values()) == [first, second, chat]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_full_disk_stops_no_request(caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptPrompts(Path("/dev/full"))
    for _ in range(2):
        kept.keep([1, 2])
    assert [record.getMessage() for record in caplog.records] == [
        "keep_prompts: no more prompts are kept: No space left on device"
    ]


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"keep_prompts: .* cannot be written: Is a directory"):
        KeptPrompts(tmp_path)


def test_processes_in_other_folders_write_to_the_same_file() -> None:
    assert load_settings(keep_prompts=Path("a/b.jsonl")).keep_prompts == Path.cwd() / "a/b.jsonl"
