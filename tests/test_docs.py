"""What README and docs say is true: links lead somewhere, named files exist, settings, paths and metrics are all there.

`python tests/test_docs.py` writes docs/configuration.md, and the table of fields in docs/api.md.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsBase as MessageParams
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.api.app import create_app
from app.api.chat.schema import ChatRequest
from app.api.completions.schema import CompletionRequest
from app.api.edge.body import RequestBody
from app.api.messages.schema import MessagesRequest
from app.api.responses.schema import ResponsesRequest
from app.metrics import Metrics
from app.settings import GROUPS, RequestLimits, Settings, shown_default

REPOSITORY = Path(__file__).parent.parent
CONFIGURATION = REPOSITORY / "docs" / "configuration.md"
API = REPOSITORY / "docs" / "api.md"
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(path for folder in ("docs", "deploy", "benchmarks") for path in (REPOSITORY / folder).rglob("*.md")),
    ]
)
FOLDERS = "app|paceline_bench|benchmarks|deploy|docs|scripts|tests|core|engine|worker|attention|models|api"
MAX_README_LINES = 150


# ---------------------------------------------------------------------- configuration.md


def configuration_page() -> str:
    """docs/configuration.md, as it has to be."""
    tables = [f"## {group.__doc__}\n\n{_table(group)}" for group in GROUPS]
    limits = f"## Request limits\n\nMembers of `request_limits`. {RequestLimits.__doc__}\n\n{_table(RequestLimits)}"
    return "\n\n".join([_INTRODUCTION, *tables, limits]) + "\n"


_INTRODUCTION = """# Configuration

<!-- This page is generated from app/settings.py by `python tests/test_docs.py`. -->

Every setting is a flag of `paceline serve` (`--max-queue 10`), an environment variable (`PACELINE_MAX_QUEUE=10`), or a
key of the YAML file that the variable `PACELINE_CONFIG` names (`max_queue: 10`). Flags win over variables, and
variables over the file. Unknown keys are refused. Sizes are bytes, or have a unit such as `4GiB`. The group
`request_limits` is JSON in a flag or a variable, and a mapping in the file.

Values that are left open ("auto") are decided at the start, and the log says what was chosen and why."""


def _table(group: type[BaseModel]) -> str:
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in group.model_fields.items():
        lines.append(f"| `{name}` | {_default(field)} | {(field.description or '').replace('<', '&lt;')} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    return "[below](#request-limits)" if isinstance(field.default, BaseModel) else shown_default(field)


def test_the_configuration_page_is_that_of_the_settings() -> None:
    assert CONFIGURATION.read_text() == configuration_page(), "run python tests/test_docs.py"


# ---------------------------------------------------------------------- fields of requests

REQUESTS: dict[str, tuple[type[RequestBody], Any]] = {
    # path, with the request as Paceline and as the original's client has it
    "/v1/chat/completions": (ChatRequest, ChatParams),
    "/v1/completions": (CompletionRequest, CompletionParams),
    "/v1/responses": (ResponsesRequest, ResponseParams),
    "/v1/messages": (MessagesRequest, MessageParams),
}
_MARK = "<!-- This table is generated from the schemas by `python tests/test_docs.py`. -->"


def fields_table() -> str:
    """The table of all fields, as it has to be: those that are treated alike are in one row."""
    told: defaultdict[str, list[str]] = defaultdict(lambda: [""] * len(REQUESTS))
    for column, (model, _) in enumerate(REQUESTS.values()):
        for name, what in _fields(model):
            told[name][column] = what
    rows: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(told):
        rows[tuple(told[name])].append(f"`{name}`")
    lines = [f"| field | {' | '.join(f'`{path}`' for path in REQUESTS)} |", "| --- " * (len(REQUESTS) + 1) + "|"]
    lines += [f"| {', '.join(names)} | {' | '.join(row)} |" for row, names in sorted(rows.items(), reverse=True)]
    return "\n".join(lines) + "\n"


def _fields(model: type[RequestBody], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a request and of the objects in it, and what becomes of each."""
    yield from ((prefix + name, "refused") for name in model.unsupported)
    yield from ((prefix + name, "hint") for name in model.hints)
    for name, field in model.model_fields.items():
        name = prefix + (field.alias or name)
        yield name, "hint" if (field.description or "").startswith("changes nothing") else "taken"
        for inner, dots in _models(field.annotation, "."):
            yield from _fields(inner, name + dots)


def _models(annotation: Any, dots: str) -> Iterator[tuple[type[RequestBody], str]]:
    """The models of the objects that a field may hold, and how a path goes on to their fields."""
    if isinstance(annotation, type) and issubclass(annotation, RequestBody):
        yield annotation, dots
    for part in get_args(annotation):
        yield from _models(part, "[]." if get_origin(annotation) is list else dots)


def test_the_table_of_fields_is_that_of_the_schemas() -> None:
    assert API.read_text().split(_MARK)[1].strip() == fields_table().strip(), "run python tests/test_docs.py"


@pytest.mark.parametrize("path", REQUESTS)
def test_every_field_of_the_originals_client_is_known(path: str) -> None:
    model, params = REQUESTS[path]
    known = set(model.model_fields) | model.hints | set(model.unsupported)
    assert set(params.__annotations__) - known - {"betas"} == set()  # the last one is a header


# ---------------------------------------------------------------------- links, anchors, files


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken(page: Path, target: str) -> bool:
    """Whether a link on a page leads nowhere."""
    path, _, anchor = target.partition("#")
    other = (page.parent / path).resolve() if path else page
    return not other.exists() or (anchor != "" and anchor not in _anchors(other))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inner = [link for link in links if not re.match(r"https?:", link)]
    assert [link for link in inner if _broken(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_named_file_exists(page: Path) -> None:
    """Paths from the root, from `app/`, or from the page's own folder."""
    names = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", page.read_text())
    roots = (REPOSITORY, REPOSITORY / "app", page.parent)
    missing = {name for name in names if "NAME" not in name and not any((root / name).exists() for root in roots)}
    assert missing == set()


def test_every_citation_of_a_page_leads_somewhere() -> None:
    """Comments, docstrings and help texts that cite `docs/PAGE.md#anchor`."""
    files = [
        path
        for folder in ("app", "paceline_bench", "benchmarks", "deploy", "scripts")
        for path in (REPOSITORY / folder).rglob("*")
    ]
    cited = {
        (path, target)
        for path in files
        if path.suffix in (".py", ".yaml", ".yml", ".conf", ".sh", "") and path.is_file()
        for target in re.findall(r"docs/\w+\.md(?:#[\w-]+)?", path.read_text())
    }
    assert cited
    assert {(path, target) for path, target in cited if _broken(REPOSITORY / "README.md", target)} == set()


# ---------------------------------------------------------------------- README


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_the_readme_lists_every_path() -> None:
    """Other names of a path are on the page of the API."""
    pages = (REPOSITORY / "README.md").read_text(), (REPOSITORY / "docs" / "api.md").read_text()
    table = "\n".join(line for page in pages for line in page.splitlines() if line.startswith("|"))
    told = {re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"(?<=[` ])/[\w/{}.]+", table)}
    app = create_app(Settings(), lambda _app: nullcontext())  # type: ignore[arg-type, return-value]
    served = {re.sub(r"\{\w+(:path)?\}", "{}", path) for path in app.openapi()["paths"]}
    assert told == served | {"/docs", "/openapi.json"}


# ---------------------------------------------------------------------- metrics


def test_the_page_on_operations_lists_every_metric() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    section = text.split("## Metrics")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = set(re.findall(r"`(\w+)`", " ".join(cells)))
    types = re.findall(r"^# TYPE paceline_(\w+) (\w+)$", Metrics().render().decode(), re.MULTILINE)
    own = {name for name, kind in types if not (kind == "gauge" and name.endswith("_created"))}
    assert told == own


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration_page())
    API.write_text(f"{API.read_text().split(_MARK)[0]}{_MARK}\n\n{fields_table()}")
    print(f"wrote {CONFIGURATION} and {API}", file=sys.stderr)
