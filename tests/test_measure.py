"""The script that measures the source, on a source that is small enough to be counted by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "measure.py"
FILES = {
    "app/__init__.py": "",
    "app/settings.py": "class Paths:\n    a: int = 0\n\n\nclass Settings(Paths):\n    b: int = 0\n",
    "app/core/one.py": '"""A text\nof two lines."""\n\nfrom app.core import two\n\n'
    "x = (\n    1,  # a number\n)\n\n\ndef g():\n    return x\n",
    "app/core/two.py": 'def f():\n    """Described."""\n    from app.core.one import x\n\n    return x\n',
    "tests/test_it.py": "def test_this():\n    pass\n",
}


@pytest.mark.slow
def test_figures(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    printed = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True).stdout
    for row in (
        "| lines / files | 23 / 4 |",
        "| lines of code | 11 |",
        "| lines of docstrings | 3 |",
        "| public definitions; with a docstring | 4; 25% |",
        "| largest class | Paths (2 lines, 0 methods) |",
        "| depth of folders | 2 |",
        "| import circles when imported | none |",
        "| import circles with imports for types and in functions | [2] |",
        "| settings | 2 |",
        "| tests: functions; lines | 1; 2 |",
        "| core | 17 |",
        "| path of a token ≤ 6,500 | 17: met |",
    ):
        assert row in printed, printed
