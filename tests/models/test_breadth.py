"""Of the models that docs/models.md says are exact, a few of all kinds are tried at each change."""

from pathlib import Path

import pytest

from tests.models.breadth import KINDS, PAGE, judge, listed

EXACT = listed(PAGE.read_text())


@pytest.mark.parametrize("kind", EXACT[::6])
def test_a_model_of_the_page_says_what_transformers_says(kind: str, tmp_path: Path) -> None:
    assert judge(kind, tmp_path) == "exact"


def test_the_page_lists_most_of_what_there_is() -> None:
    assert len(EXACT) == len(set(EXACT)) >= 140
    assert set(EXACT) <= set(KINDS)
