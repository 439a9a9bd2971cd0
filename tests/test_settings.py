"""Where settings come from, and how wrong ones are reported."""

from pathlib import Path

import pytest

from app.errors import StartupError
from app.settings import Settings, load_settings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "paceline.yaml"
    path.write_text("max_n: 3\nrequest_limits:\n  max_tools: 4\n  max_prompt_size: 1MiB\n")
    monkeypatch.setenv("PACELINE_CONFIG", str(path))
    return path


@pytest.mark.usefixtures("config")
def test_flags_are_stronger_than_variables_and_these_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().max_n, load_settings().request_limits.max_tools) == (3, 4)
    assert load_settings().request_limits.max_prompt_size == 2**20
    monkeypatch.setenv("PACELINE_MAX_N", "5")
    monkeypatch.setenv("PACELINE_REQUEST_LIMITS", '{"max_tools": 6}')
    assert (load_settings().max_n, load_settings().request_limits.max_tools) == (5, 6)
    flags = load_settings(max_n="7", request_limits='{"max_tools": 8}')
    assert (flags.max_n, flags.request_limits.max_tools) == (7, 8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "request_limits: Value error, not JSON"),
        ("3", "request_limits: Input should be"),
        ('{"max_tols": 3}', "request_limits.max_tols: Extra inputs"),
        ('{"max_tools": -1}', "request_limits.max_tools: Input should be greater"),
    ],
)
def test_a_wrong_limit_is_named(value: str, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        load_settings(request_limits=value)


def test_children_get_the_same_settings() -> None:
    settings = load_settings(request_limits='{"max_prompt_size": "1MiB"}', api_keys="keys.yaml", max_itl=20)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
