"""Size and shape of the source: what a reader has to get through, and whether it stays within two budgets.

    python scripts/measure.py [ROOT]

It reads the files and runs nothing of them. ROOT is a checkout, by default the one that the script is in. The figures
are about `app/`, where they do not say otherwise. Being over a budget is printed, and is no failure.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path

PATH_OF_A_TOKEN = ("core", "engine", "worker", "attention", "models", "layers")
"""What a token passes through between the two ends of the engine's socket."""
BUDGETS = {"path of a token": 6_500, "app": 17_500}
"""Most lines."""
LONG_FUNCTION, LONG_FILE = 60, 300

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def length(node: ast.stmt | ast.expr) -> int:
    """Lines from the first to the last of a node; decorators are not counted."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


@dataclass(frozen=True)
class Source:
    """One file. `name` is its module's full name."""

    path: Path
    name: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def package(self) -> str:
        """What the module's relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    def nodes(self) -> Iterator[ast.AST]:
        """All nodes of the syntax tree."""
        return ast.walk(self.tree)

    def functions(self) -> list[Function]:
        """Functions and methods, nested ones included."""
        return [node for node in self.nodes() if isinstance(node, Function)]

    def docstrings(self) -> list[ast.stmt]:
        """Docstrings, and strings that describe the name above them."""
        return [node for node in self.nodes() if isinstance(node, ast.Expr) and _is_text(node.value)]

    def num_code_lines(self) -> int:
        """Lines that are not blank, comment, docstring or import."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        lines = {n for t in tokens if t.type not in _NO_CODE for n in range(t.start[0], t.end[0] + 1)}
        imports = [node for node in self.nodes() if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in self.docstrings() + imports:
            lines -= set(range(node.lineno, node.lineno + length(node)))
        return len(lines)

    def public_definitions(self) -> list[Definition]:
        """Classes, functions and methods whose names begin with no underscore."""
        return [node for node in self.nodes() if isinstance(node, Definition) and not node.name.startswith("_")]

    def imports(self, every: bool) -> set[str]:
        """Names of what the module imports when it is imported; with `every`, in functions and for types too."""
        names, todo = set(), list[ast.AST](self.tree.body)
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = resolve_name("." * node.level + (node.module or ""), self.package)
                names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
            elif every or not (isinstance(node, Function) or _is_for_types(node)):
                todo += ast.iter_child_nodes(node)
        return names


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def read(root: Path, folder: str) -> list[Source]:
    """All Python files under a folder of the checkout."""
    paths = sorted((root / folder).rglob("*.py"))
    return [Source(p, ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__")) for p in paths]


def circles(sources: list[Source], every: bool) -> list[int]:
    """Sizes of the groups of modules that import each other, directly or not."""
    names = {source.name for source in sources}
    graph = {source.name: source.imports(every) & names - {source.name} for source in sources}
    reached = {name: _reachable(graph, name) for name in names}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in names}
    return sorted((len(group) for group in groups if group), reverse=True)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph[name]
    return found


def num_settings(source: Source) -> int:
    """Fields of the class `Settings` and of the classes in the same file that it is made of."""
    classes = {node.name: node for node in source.tree.body if isinstance(node, ast.ClassDef)}
    bases = [base.id for base in classes["Settings"].bases if isinstance(base, ast.Name)]
    parts = [classes[name] for name in ("Settings", *bases) if name in classes]
    return sum(isinstance(node, ast.AnnAssign) for part in parts for node in part.body)


def figures(app: list[Source], tests: list[Source]) -> Iterator[tuple[str, object]]:
    """What the first table says."""
    functions = sorted(length(node) for source in app for node in source.functions())
    percentiles = statistics.quantiles(functions, n=100)
    public = [node for source in app for node in source.public_definitions()]
    described = sum(ast.get_docstring(node) is not None for node in public)
    classes = [node for source in app for node in source.nodes() if isinstance(node, ast.ClassDef)]
    largest = max(classes, key=length)
    long_files = sorted((source.num_lines for source in app if source.num_lines > LONG_FILE), reverse=True)
    yield "lines / files", f"{sum(source.num_lines for source in app):,} / {len(app)}"
    yield "lines of code", f"{sum(source.num_code_lines() for source in app):,}"
    yield "lines of docstrings", f"{sum(length(node) for source in app for node in source.docstrings()):,}"
    yield "public definitions; with a docstring", f"{len(public)}; {described / len(public):.0%}"
    yield "functions", f"{len(functions):,}"
    yield (
        "their lines: median / p90 / p99 / max",
        f"{statistics.median(functions):.0f} / {percentiles[89]:.0f} / {percentiles[98]:.0f} / {functions[-1]}",
    )
    yield f"functions > {LONG_FUNCTION} lines", sum(lines > LONG_FUNCTION for lines in functions)
    yield f"files > {LONG_FILE} lines", f"{len(long_files)} {long_files or ''}"
    methods = sum(isinstance(node, Function) for node in largest.body)
    yield "largest class", f"{largest.name} ({length(largest)} lines, {methods} methods)"
    yield "depth of folders", max(source.name.count(".") for source in app if source.path.name != "__init__.py")
    yield "import circles when imported", circles(app, every=False) or "none"
    yield "import circles with imports for types and in functions", circles(app, every=True) or "none"
    yield "settings", sum(num_settings(source) for source in app if source.name == "app.settings")
    cases = sum(node.name.startswith("test_") for source in tests for node in source.functions())
    yield "tests: functions; lines", f"{cases}; {sum(source.num_lines for source in tests):,}"


def lines_by_folder(app: list[Source]) -> Counter[str]:
    """Lines of each package in `app`; single modules are counted together."""
    lines = Counter[str]()
    for source in app:
        parts = source.name.split(".")
        is_package = len(parts) > 2 or source.path.name == "__init__.py"
        lines[parts[1] if is_package and len(parts) > 1 else "(modules)"] += source.num_lines
    return lines


def print_table(head: tuple[str, str], rows: list[tuple[str, object]]) -> None:
    """Markdown."""
    for row in (head, ("---", "---"), *rows):
        print("| {} | {} |".format(*row))
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).parent.parent)
    root = parser.parse_args().root
    app = read(root, "app")
    lines = lines_by_folder(app)
    used = {"path of a token": sum(lines[name] for name in PATH_OF_A_TOKEN), "app": lines.total()}
    print_table(("figure", "app"), list(figures(app, read(root, "tests"))))
    print_table(("folder of app", "lines"), [(name, f"{number:,}") for name, number in lines.most_common()])
    budgets = [(f"{name} ≤ {most:,}", used[name], used[name] <= most) for name, most in BUDGETS.items()]
    print_table(
        ("budget", "lines"), [(name, f"{number:,}: {'met' if ok else 'NOT MET'}") for name, number, ok in budgets]
    )


if __name__ == "__main__":
    main()
