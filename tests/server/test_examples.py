"""The examples in README and docs for the embedded model."""

import sys

import pytest

from tests.server.examples import ADDRESS, CURLS, OF_OTHER_MODELS, blocks, check_example, run
from tests.server.process import Server

OWN = [(section, command) for section, command in CURLS if section not in OF_OTHER_MODELS]


@pytest.mark.parametrize("command", [command for _, command in OWN], ids=[section for section, _ in OWN])
def test_examples_of_curl(server: Server, command: str) -> None:
    check_example(server.url, command)


@pytest.mark.parametrize(("page", "said"), [("README.md", "Paris"), ("docs/api.md", "name='Ann'")])
def test_examples_in_python(server: Server, page: str, said: str) -> None:
    """A page's blocks go on from one another."""
    program = "\n".join(code for section, code in blocks("python") if section.startswith(page))
    assert said in run(sys.executable, "-c", program.replace(ADDRESS, server.url))
