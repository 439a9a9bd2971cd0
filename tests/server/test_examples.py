"""The examples in README and docs, run as they are printed, but for the server's address."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.server.process import Server, running_server
from tests.server.test_encoders import CLS, SEP, write_tokenizer
from tests.worker.test_encoder_runner import write_encoder
from tests.worker.test_forecaster import write_forecaster
from tests.worker.test_image_models import write_image_model
from tests.worker.test_predictors import write_decoder

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md", "docs/forecasting.md", "docs/image-models.md", "docs/encoders.md")
ADDRESS = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page and section, code) of all blocks of a kind."""
    pattern = re.compile(rf"^#+ ([^\n]+)$|^```{kind}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = []
    for page in PAGES:
        section = ""
        for heading, code in pattern.findall((REPOSITORY / page).read_text()):
            section = heading or section
            if code:
                found.append((f"{page}: {section}", code))
    return found


def commands(code: str) -> list[str]:
    """The calls of curl in a block for the shell."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl")]


CURLS = [(section, command) for section, code in blocks("bash") for command in commands(code)]


def run(*command: str, folder: Path | None = None) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, "Bert", "Model", vocab_size=258)
    write_tokenizer(folder)
    with running_server("--model", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("forecaster")
    write_forecaster(folder, "TimesFmModelForPrediction")
    with running_server("--model", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clip")
    write_image_model(folder, "CLIPModel", vocab_size=258, bos_token_id=CLS, eos_token_id=SEP)
    write_tokenizer(folder)
    with running_server("--model", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tagger")
    write_encoder(folder, "Bert", "ForTokenClassification", vocab_size=258)
    write_tokenizer(folder)
    with running_server("--model", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("judge")
    write_decoder(folder, "Qwen3", "ForCausalLM", vocab_size=300, max_position_embeddings=600)
    write_tokenizer(folder)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_tokens(["yes", "no"])
    fast.save(str(folder / "tokenizer.json"))
    with running_server("--model", str(folder), "--task", "score") as server:
        yield server


SERVERS = {
    "docs/encoders.md: Embeddings": "encoder",
    "docs/encoders.md: Entities": "tagger",
    "docs/encoders.md: Rerankers that generate": "judge",
    "docs/api.md: Encoders": "encoder",
    "docs/forecasting.md: Forecasting": "forecaster",
    "docs/image-models.md: Classifying": "clip",
    "docs/image-models.md: Embedding": "clip",
    "docs/image-models.md: Files": "clip",
}
IMAGE = re.search(r"^IMAGE=\S+$", (REPOSITORY / "docs/image-models.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("section", "command"), CURLS, ids=[section for section, _ in CURLS])
def test_examples_of_curl(request: pytest.FixtureRequest, tmp_path: Path, section: str, command: str) -> None:
    server: Server = request.getfixturevalue(SERVERS.get(section, "server"))
    assert ADDRESS in command
    assert IMAGE is not None
    command = command.replace("curl", "curl --silent --show-error --fail-with-body", 1).replace(ADDRESS, server.url)
    files = 'base64 -d <<< "${IMAGE#*,}" | tee cat.jpg > dog.png'
    answer = run("bash", "-c", f"{IMAGE[0]}; {files}; {command}", folder=tmp_path)
    assert answer.startswith(("{", "data: {", "id: ", ": "))
    assert '"error":{' not in answer


@pytest.mark.parametrize(("page", "said"), [("README.md", "Paris"), ("docs/api.md", "name='Ann'")])
def test_examples_in_python(server: Server, page: str, said: str) -> None:
    """A page's blocks go on from one another."""
    program = "\n".join(code for section, code in blocks("python") if section.startswith(page))
    assert said in run(sys.executable, "-c", program.replace(ADDRESS, server.url))
