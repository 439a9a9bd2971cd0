"""Who may import whom, held by reading the source. The table below is the architecture."""

import ast
import re
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
APP = REPOSITORY / "app"

EVERYBODY = {"core", "settings", "errors", "version"}
MAY_IMPORT = {
    "cli": {
        "supervisor",
        "llm",
        "batch",
        "doctor",
        "terminal",
        "check_model",
        "quality",
        "quantize",
        "distill",
        "tenants",
    },
    "main": {"own_engine", "log"},
    "own_engine": {"api", "supervisor", "checkpoint"},
    "batch": {"llm", "api", "tenants"},
    "doctor": {"kernels", "layers"},
    "terminal": {"llm"},
    "llm": {"own_engine", "api", "text", "tenants"},
    "supervisor": {"checkpoint", "log", "metrics", "tenants"},
    "check_model": {"check_predictor", "engine", "checkpoint", "models"},
    "check_predictor": {"engine", "checkpoint"},
    "quality": {"worker", "checkpoint", "text"},
    "distill": {"engine", "models", "layers", "kernels", "text", "checkpoint"},
    "quantize": {"models", "layers", "checkpoint"},
    "api": {"engine", "grammar", "media", "speech", "text", "checkpoint", "metrics", "log", "tenants"},
    "engine": {"fairness", "checkpoint", "log"},
    "fairness": set(),
    "worker": {"models", "layers", "attention", "kernels", "grammar", "checkpoint"},
    "models": {"layers", "attention", "kernels", "checkpoint"},
    "attention": {"kernels"},
    "layers": {"kernels", "checkpoint"},
    "kernels": set(),
    "checkpoint": set(),
    "grammar": {"text"},
    "media": {"checkpoint"},
    "text": {"checkpoint"},
    "speech": set(),
    "metrics": set(),
    "tenants": set(),
    "log": set(),
    "core": set(),
    "settings": {"setting_sources"},
    "setting_sources": set(),
    "errors": set(),
    "version": set(),
}
COMPOSITION_ROOT = APP / "engine" / "build.py"
"""The one place that knows scheduler and worker both; it imports the worker when it is asked to build one."""
WITHOUT_AN_ENGINE = APP / "quality.py"
"""Has a worker for itself, because what it asks of one is too large for the engine's messages."""
OF_THE_API_ENGINE_IS = {"app.engine.client"}
"""What the API may see of the engine."""
TORCH_FREE = {
    "core",
    "api",
    "text",
    "grammar",
    "media",
    "speech",
    "engine",
    "fairness",
    "checkpoint",
    "settings",
    "setting_sources",
    "errors",
    "metrics",
    "tenants",
    "log",
    "supervisor",
    "cli",
    "main",
    "own_engine",
    "llm",
    "terminal",
    "version",
}
HEAVY = {"torch", "transformers", "safetensors"}
OWN_PROCESSES = {APP / "checkpoint" / "convert.py", APP / "media" / "processors.py"}
"""They run in processes of their own, so that nobody else imports what they need."""

ROOMS_OF_THE_API = [
    "edge",
    "service",
    "services",
    "deps generation",
    "chat completions",
    "encoders audio",
    "messages responses operations batches forecasts page",
]
"""From the lowest floor up: each room may import from the floors below its own. `app` and `process` are the roof."""

FILES = sorted(APP.rglob("*.py"))


def unit(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return path.relative_to(APP).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """A file's full name."""
    return ".".join(path.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


@cache
def imports(path: Path) -> list[str]:
    """Full names of all modules that a file imports: for types only and inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = ".".join(path.relative_to(REPOSITORY).parent.parts)
            source = resolve_name("." * node.level + (node.module or ""), own)
            parts = [f"{source}.{alias.name}" for alias in node.names]
            names += {part if part in MODULES else source for part in parts}
    return names


def test_imports_from_the_own_package_are_relative() -> None:
    """The package is called `app` here, and `paceline` where it is installed."""
    absolute = re.compile(r"^\s*(from|import) (app|paceline)\b", re.MULTILINE)
    assert [path for path in FILES if absolute.search(path.read_text())] == []


def test_arrows_point_down() -> None:
    for path in FILES:
        check_arrows(path)


def check_arrows(path: Path) -> None:
    own = unit(path)
    if own == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in HEAVY and own in TORCH_FREE:
            assert path in OWN_PROCESSES, f"{path}: {own} is free of {parts[0]}"
        if parts[0] != "app" or len(parts) == 1:
            continue
        target = parts[1]
        if own == "api" and target == "engine":
            assert name in OF_THE_API_ENGINE_IS, path
        elif target == "worker" and own != "worker":
            assert path in (COMPOSITION_ROOT, WITHOUT_AN_ENGINE)
        else:
            assert target in {own} | EVERYBODY | MAY_IMPORT[own], f"{path}: {own} may not import {target}"


def test_the_table_names_what_exists() -> None:
    units = {unit(path) for path in FILES} - {"__init__"}
    assert units | {"kernels"} == MAY_IMPORT.keys() | {"kernels"}


def test_the_load_test_stands_alone() -> None:
    """`paceline_bench` measures any server: it sees nothing of `app`, and in `app` only the command line sees it."""
    seen = {name for path in (REPOSITORY / "paceline_bench").glob("*.py") for name in imports(path)}
    assert not {name for name in seen if name.partition(".")[0] in {"app"} | HEAVY}
    users = [path for path in FILES if any(name.startswith("paceline_bench.") for name in imports(path))]
    assert users == [APP / "cli.py"]


def test_there_is_no_circle() -> None:
    graph = {name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()}
    reached = {name: _reachable(graph, name) for name in graph}
    circles = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph} - {frozenset()}
    assert circles == set()


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that importing one brings along; itself only if it is in a circle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_arrows_between_rooms_of_the_api_point_down() -> None:
    floors = {room: floor for floor, rooms in enumerate(ROOMS_OF_THE_API) for room in rooms.split()}
    for name, path in MODULES.items():
        own = name.split(".")[2] if name.startswith("app.api.") else ""
        if own in ("", "app", "process"):
            continue
        for other in imports(path):
            room = other.split(".")[2] if other.startswith("app.api.") else own
            assert room == own or floors[room] < floors[own], f"{name} may not import {other}"
