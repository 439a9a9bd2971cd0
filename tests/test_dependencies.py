"""pyproject.toml declares what the code imports: what another package happens to bring along may be gone tomorrow."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FILES = [path for package in ("app", "paceline_bench") for path in (REPOSITORY / package).rglob("*.py")]
OWN = {"app", "paceline_bench"}
BROUGHT_BY_TORCH = {"triton"}
"""Only torch's builds for CUDA need Triton, each the version that it names: pyproject.toml leaves it to them."""


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]


def normalized(requirement: str) -> str:
    """The name in a requirement such as "fonttools[woff]>=4", as PEP 503 compares names."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared() -> set[str]:
    """What an installation brings, with the extras that users choose; not what only the tests need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra != "test"]
    return {normalized(name) for names in (project["dependencies"], *extras) for name in names}


def test_what_is_imported_is_declared() -> None:
    """One test for all: reading the files takes a second, which every test process would spend on a list of names."""
    names = {name for path in FILES for name in imported(path)}
    providers, allowed = packages_distributions(), declared()
    third_party = names - OWN - sys.stdlib_module_names - BROUGHT_BY_TORCH
    assert len(third_party) > 20
    assert not {name for name in third_party if not {normalized(one) for one in providers[name]} & allowed}
