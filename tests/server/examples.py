"""The examples in README and docs, run as they are printed, but for the server's address.

Those of other models than the embedded one are run by the tests that have a server with such a model.
"""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md", "docs/forecasting.md", "docs/image-models.md", "docs/encoders.md")
ADDRESS = "http://127.0.0.1:8000"
OF_OTHER_MODELS = {
    "docs/encoders.md: Embeddings",
    "docs/encoders.md: Entities",
    "docs/encoders.md: Rerankers that generate",
    "docs/api.md: Encoders",
    "docs/forecasting.md: Forecasting",
    "docs/forecasting.md: Chronos",
    "docs/image-models.md: Classifying",
    "docs/image-models.md: Embedding",
    "docs/image-models.md: Files",
}
"""Sections whose examples are for another model than the embedded one."""


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
IMAGE = re.search(r"^IMAGE=\S+$", (REPOSITORY / "docs/image-models.md").read_text(), re.MULTILINE)


def check_examples(url: str, *sections: str) -> None:
    """Run what these sections, of which each has examples, ask of a server of another model."""
    for section in sections:
        assert section in OF_OTHER_MODELS
        of_section = [command for name, command in CURLS if name == section]
        assert of_section, f"{section} has no example"
        for command in of_section:
            check_example(url, command)


def check_example(url: str, command: str) -> None:
    """Run a call of curl: its answer has to be one."""
    assert ADDRESS in command
    assert IMAGE is not None
    command = command.replace("curl", "curl --silent --show-error --fail-with-body", 1).replace(ADDRESS, url)
    files = 'base64 -d <<< "${IMAGE#*,}" | tee cat.jpg > dog.png'
    with TemporaryDirectory() as folder:
        answer = run("bash", "-c", f"{IMAGE[0]}; {files}; {command}", folder=Path(folder))
    assert answer.startswith(("{", "data: {", "id: ", ": "))
    assert '"error":{' not in answer


def run(*command: str, folder: Path | None = None) -> str:
    """The output of a command that has to succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
